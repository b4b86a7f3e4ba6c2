// An error with a remedy, as gmf_edge/errors.py has it; never thrown across TensorRT's interfaces.
#pragma once

#include <stdexcept>
#include <string>

namespace gmf_edge {

class Problem : public std::runtime_error {
public:
    Problem(std::string const& problem, std::string const& remedy) : std::runtime_error(problem + "; " + remedy) {}
};

} // namespace gmf_edge
