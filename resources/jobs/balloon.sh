# What the guests of tests/tests/guest/balloon.rs do with their memory.

# Fills so many MiB.
fill() {
	dd if=/dev/zero of=/filling bs=1M count=$1 2>/dev/null
}

empty() {
	rm /filling
}

# Writes memory and frees it, without end.
churn() {
	while :; do
		dd if=/dev/zero of=/work bs=1M count=32 2>/dev/null
		rm /work
	done &
	worker=$!
}

# Figures of /proc/meminfo, in KiB.
meminfo() {
	while read -r name kib unit; do
		case $name in
		MemTotal: | MemFree: | MemAvailable: | Cached:) echo "$name $kib" ;;
		esac
	done < /proc/meminfo
}

# Takes so many MiB in a process of its own. Says what became of it, and how often the kernel killed somebody.
devour() {
	dd if=/dev/zero of=/dev/null bs=$1M count=1 2>/dev/null
	echo "dd $?"
	echo "killed $(dmesg | grep -c 'Out of memory')"
}
