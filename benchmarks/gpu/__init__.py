"""The parts of benchmarks/on_gpu.sh."""
