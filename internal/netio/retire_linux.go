package netio

import (
	"bufio"
	"bytes"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// soDetachReuseportBPF is SO_DETACH_REUSEPORT_BPF.
const soDetachReuseportBPF = 68

// steer sends new connections of the address to the socket of that index among
// those that share it. An index that does not exist leaves it to the kernel.
func steer(l *net.TCPListener, index int) error {
	rc, err := l.SyscallConn()
	if err != nil {
		return err
	}
	return control(rc, func(fd int) error {
		prog := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: uint32(index)}}
		return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &unix.SockFprog{Len: 1, Filter: &prog[0]})
	})
}

// unsteer removes what a predecessor's steer has left behind.
func unsteer(l *net.TCPListener) {
	if rc, err := l.SyscallConn(); err == nil {
		_ = control(rc, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, soDetachReuseportBPF, 0) })
	}
}

// waiting reports whether connections wait for Accept.
func waiting(l *net.TCPListener) bool {
	n := uint32(0)
	if rc, err := l.SyscallConn(); err == nil {
		_ = control(rc, func(fd int) error {
			info, err := unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
			if err == nil {
				n = info.Unacked // of a listener: its accept queue
			}
			return err
		})
	}
	return n > 0
}

// listeners counts the sockets that listen where l does, l among them; 1 if it
// can't be found out.
func listeners(l *net.TCPListener) int {
	inode := uint64(0)
	rc, err := l.SyscallConn()
	if err != nil {
		return 1
	}
	if control(rc, func(fd int) error {
		var st unix.Stat_t
		err := unix.Fstat(fd, &st)
		inode = st.Ino
		return err
	}) != nil {
		return 1
	}
	for _, file := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		if n := listed(file, inode); n > 0 {
			return n
		}
	}
	return 1
}

// listed counts the listening sockets of a table of /proc that have the address
// of the one with that inode; 0 if it is not in it.
func listed(file string, inode uint64) int {
	f, err := os.Open(file)
	if err != nil {
		return 0
	}
	defer func() { _ = f.Close() }()
	id := strconv.FormatUint(inode, 10)
	own, count := "", map[string]int{}
	lines := bufio.NewScanner(f)
	lines.Scan() // the head
	for lines.Scan() {
		fs := bytes.Fields(lines.Bytes())
		if len(fs) < 10 || string(fs[3]) != "0A" { // listeners come first
			break
		}
		count[string(fs[1])]++
		if string(fs[9]) == id {
			own = string(fs[1])
		}
	}
	return count[own]
}
