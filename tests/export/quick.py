"""torch's exporter, made quick for tests; importing this is enough.

torch reads the sources of its whole operator library anew for every graph it exports: half of the time of these tests.
Nothing of ours changes what it finds.
"""

import functools

from torch.onnx._internal.exporter._registration import ONNXRegistry

ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]
