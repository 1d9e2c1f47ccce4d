"""The parts of `tests.gpu.prove`: functions of a device that measure, each of which runs in a process of its own."""
