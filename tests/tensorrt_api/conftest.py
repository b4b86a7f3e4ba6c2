"""The modules beside the tests (trt_bindings, trt_stubs, trt_usage, the stand-ins) are imported by name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from trt_machine import make  # noqa: F401  # the fixture
