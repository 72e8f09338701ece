"""Code for other CPUs, run: an emulator for exported shared libraries, and the machines that tests run programs on."""
