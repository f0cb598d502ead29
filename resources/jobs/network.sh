# What the guests of tests/tests/guest/network.rs do with eth0. The host's side of a tap is 192.0.2.1 and fd00::1, the guest's ends in 2.

# Tells the test that it is its turn, and waits until it was.
your_turn() {
	echo "turn $1"
	read answer
}

received() { echo "$1 $(cat /sys/class/net/eth0/statistics/rx_packets)"; }

transfer() {
	name=$1
	shift
	# Of a server that is still busy with the last one there is only a refusal.
	for try in 1 2 3 4 5; do
		iperf3 -c 192.0.2.1 "$@" > /iperf3.txt 2>&1 && break
		sleep 1
	done
	echo "iperf3 $name $?"
	grep -E 'receiver|error' /iperf3.txt
}

pings() {
	name=$1
	shift
	echo "ping $name $(ping "$@" 2>&1 | sed -n 's/.* \([0-9]*\) packets received.*/\1/p')"
}

# An address, a name, a page, and a page of our own, all by way of the host's user-mode network.
job_user() {
	cat > /lease <<-'END'
		#!/bin/sh
		[ "$1" = bound ] || exit 0
		ip addr add $ip/$mask dev $interface
		ip route add default via $router
		echo "nameserver $dns" > /etc/resolv.conf
		echo "lease $ip/$mask router $router dns $dns"
	END
	chmod +x /lease
	udhcpc -q -n -t 20 -T 1 -i eth0 -s /lease 2>/dev/null; echo "udhcpc $?"
	nslookup innkeeper.test | grep '^Address.*198' | sort -u
	wget -q -O /page http://innkeeper.test:8000/page; echo "wget $?"
	md5sum < /page
	mkdir /www
	cp /page /www/page
	httpd -h /www
	your_turn "to fetch it"
}

# Everything that a tap carries. The card has an MTU of 9000.
job_tap() {
	ip addr add 192.0.2.2/24 dev eth0
	ip -6 addr add fd00::2/64 dev eth0
	# The address is usable when nobody else has claimed it.
	echo "mtu $(cat /sys/class/net/eth0/mtu)"
	pings plain -c 3 -i 0.2 -W 5 192.0.2.1
	pings jumbo -c 3 -i 0.2 -W 5 -s 8972 192.0.2.1
	transfer "to the host" -n 16M
	transfer "from the host" -n 16M -R
	transfer "in parallel" -n 16M -P 4
	transfer "as datagrams" -u -b 20M -n 2M
	ethtool -K eth0 tso off gso off tx off
	ethtool -K eth0 rx-gro-hw off 2>/dev/null
	ethtool -K eth0 lro off 2>/dev/null
	ip link set eth0 mtu 1500
	transfer "to the host in small pieces" -n 4M
	transfer "from the host in small pieces" -n 4M -R
	ip link add link eth0 name eth0.5 type vlan id 5
	ip addr add 198.51.100.2/24 dev eth0.5
	ip link set eth0.5 up
	pings "in the VLAN" -c 3 -i 0.2 -W 5 198.51.100.1
	ip link del eth0.5
	until ip -6 addr show dev eth0 | grep -q 'fd00::2.*' && ! ip -6 addr show dev eth0 | grep -q tentative; do usleep 100000; done
	your_turn "to ask for fd00::2"
	pings "of neighbours" -c 3 -i 0.2 -W 5 fd00::1
	received before
	your_turn "to call others"
	received "without promiscuity"
	ip link set eth0 promisc on
	your_turn "to call others again"
	received "with promiscuity"
	ip link set eth0 promisc off
	echo "carrier $(cat /sys/class/net/eth0/carrier)"
	your_turn "to pull the cable"
	until [ $(cat /sys/class/net/eth0/carrier) = 0 ]; do usleep 50000; done
	echo "carrier $(cat /sys/class/net/eth0/carrier)"
	your_turn "to plug it in"
	until [ $(cat /sys/class/net/eth0/carrier) = 1 ]; do usleep 50000; done
	pings again -c 3 -i 0.2 -W 5 192.0.2.1
	ls /sys/class/net/eth0/queues
	ethtool -l eth0
}

# The driver goes and comes while frames go both ways.
job_unbind_network() {
	cd /sys/bus/virtio/drivers/virtio_net
	device=$(ls -d virtio*)
	for n in $(seq 100); do
		ip addr add 192.0.2.2/24 dev eth0
		ip link set eth0 up
		iperf3 -c 192.0.2.1 -t 60 --connect-timeout 5000 $([ $((n % 2)) = 0 ] || echo -R) > /iperf3.txt 2>&1 &
		client=$!
		tries=0
		until [ "$(cat /sys/class/net/eth0/statistics/tx_packets)" -gt 200 ]; do
			usleep 20000
			tries=$((tries + 1))
			# The server may still be waiting for the last client to say good-bye.
			if [ $((tries % 100)) = 0 ]; then
				kill $client 2>/dev/null
				wait
				iperf3 -c 192.0.2.1 -t 60 --connect-timeout 5000 > /iperf3.txt 2>&1 &
				client=$!
			fi
			[ $tries -lt 1000 ] || { echo "no frames in round $n: $(cat /iperf3.txt)"; break; }
		done
		echo $device > unbind || echo "unbind $n failed"
		[ ! -e /sys/class/net/eth0 ] || echo "eth0 is there after unbind $n"
		kill $client
		wait
		echo $device > bind || echo "bind $n failed"
		[ -e /sys/class/net/eth0 ] || echo "no eth0 after bind $n"
		[ $((n % 10)) != 0 ] || echo "bound $n"
	done
	cd /
	ip addr add 192.0.2.2/24 dev eth0
	ip link set eth0 up
	pings afterwards -c 3 -i 0.2 -W 5 192.0.2.1
}

# Two guests on one wire, 192.0.2.1 and 192.0.2.2 (host= says who this is): each fetches 200 MiB from the other, both at once.
job_copy() {
	other=$((3 - host))
	ip addr add 192.0.2.$host/24 dev eth0
	mkdir /www
	dd if=/dev/urandom of=/pattern bs=1M count=4 2>/dev/null
	# No part is like another, as far as one can tell cheaply.
	for n in $(seq 50); do echo $n; cat /pattern; done > /www/file
	echo "sum of mine $(md5sum < /www/file)"
	httpd -h /www
	touch /www/ready
	until wget -q -O /dev/null http://192.0.2.$other/ready; do sleep 1; done
	while sleep 20; do echo "still copying"; done &
	echo "sum of theirs $(wget -q -O - http://192.0.2.$other/file | md5sum)"
	touch /www/done
	until wget -q -O /dev/null http://192.0.2.$other/done; do sleep 1; done
	# For the other side to have seen ours.
	sleep 10
}
