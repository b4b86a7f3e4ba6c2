// Raw float32 files (little-endian, as NumPy's tofile writes them), options, and the comparison of logits. C++17, nothing else.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <map>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace gmf {

inline std::vector<float> readFloats(std::string const& path) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    if (!file) throw std::runtime_error("cannot open " + path);
    auto const bytes = static_cast<std::size_t>(file.tellg());
    if (bytes % sizeof(float)) throw std::runtime_error(path + " is not a file of float32");
    std::vector<float> values(bytes / sizeof(float));
    file.seekg(0);
    file.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(bytes));
    if (!file) throw std::runtime_error("cannot read " + path);
    return values;
}

inline void writeFloats(std::string const& path, std::vector<float> const& values) {
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<char const*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(float)));
    file.close();
    if (!file) throw std::runtime_error("cannot write " + path);
}

inline std::vector<std::string> readLines(std::string const& path) {
    std::ifstream file(path);
    if (!file) throw std::runtime_error("cannot open " + path);
    std::vector<std::string> lines;
    for (std::string line; std::getline(file, line);) lines.push_back(line);
    return lines;
}

// program MODEL IMAGES LOGITS [--option value]...
struct Arguments {
    std::vector<std::string> files;
    std::map<std::string, std::string> options;

    Arguments(int count, char** values, std::vector<std::string> const& known) {
        for (int i = 1; i < count; ++i) {
            std::string const word = values[i];
            if (word.rfind("--", 0) != 0) {
                files.push_back(word);
                continue;
            }
            if (std::find(known.begin(), known.end(), word) == known.end() || i + 1 == count)
                throw std::runtime_error("unknown or incomplete option " + word);
            options[word] = values[++i];
        }
        if (files.size() != 3) throw std::runtime_error("usage: classify MODEL IMAGES LOGITS [--batch N] [--labels FILE] [--expect FILE]");
    }

    std::string get(std::string const& name, std::string const& otherwise) const {
        auto const found = options.find(name);
        return found == options.end() ? otherwise : found->second;
    }

    std::size_t batch() const {
        int const size = std::stoi(get("--batch", "1"));
        if (size < 1) throw std::runtime_error("--batch must be at least 1");
        return static_cast<std::size_t>(size);
    }
};

inline std::size_t largest(float const* logits, std::size_t classes) {
    return static_cast<std::size_t>(std::max_element(logits, logits + classes) - logits);
}

// prints the likeliest class of each image; with --expect also the errors, and then 1 where a class differs or a logit is no number
inline int report(std::vector<float> const& logits, std::size_t classes, Arguments const& arguments) {
    std::size_t const images = logits.size() / classes;
    std::string const labelFile = arguments.get("--labels", "");
    auto const labels = labelFile.empty() ? std::vector<std::string>() : readLines(labelFile);
    for (std::size_t i = 0; i < images; ++i) {
        std::size_t const best = largest(&logits[i * classes], classes);
        std::printf("image %zu: %s\n", i, best < labels.size() ? labels[best].c_str() : std::to_string(best).c_str());
    }
    std::string const expected = arguments.get("--expect", "");
    if (expected.empty()) return 0;
    auto const wanted = readFloats(expected);
    if (wanted.size() != logits.size()) throw std::runtime_error(expected + " has another number of logits");
    double worst = 0;
    std::size_t same = 0;
    bool finite = true;
    for (std::size_t i = 0; i < logits.size(); ++i) {
        finite = finite && std::isfinite(logits[i]);
        worst = std::max(worst, std::fabs(static_cast<double>(logits[i]) - wanted[i]));
    }
    for (std::size_t i = 0; i < images; ++i) same += largest(&logits[i * classes], classes) == largest(&wanted[i * classes], classes);
    bool const passed = finite && same == images;
    std::printf("%s: %zu of %zu images have the expected class, largest difference of a logit %.6g\n", passed ? "PASSED" : "FAILED", same,
                images, worst);
    return passed ? 0 : 1;
}

}  // namespace gmf
