# What the guests of tests/tests/guest/rng.rs do with randomness of the host.

job_rng() {
	cat /sys/class/misc/hw_random/rng_available
	cat /sys/class/misc/hw_random/rng_current
	dd if=/dev/hwrng bs=64k count=32 iflag=fullblock 2>/dev/null > /random
	wc -c < /random
	rngtest < /random 2>&1
}
