"""The concept inside trained networks: probes, steering, and the tests of the paper on rounds."""
