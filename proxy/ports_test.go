package proxy

import (
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
)

// portsTaken are those that FreePorts has handed out.
var portsTaken struct {
	sync.Mutex
	m map[int]bool
}

// FreePorts returns n ports of 127.0.0.1 that were free a moment ago. No port is
// handed out twice, nor is one that the kernel may give to a connection meanwhile.
func FreePorts(t *testing.T, n int) []int {
	t.Helper()
	portsTaken.Lock()
	defer portsTaken.Unlock()
	if portsTaken.m == nil {
		portsTaken.m = map[int]bool{}
	}
	var ports []int
	for range 10_000 {
		if len(ports) == n {
			return ports
		}
		p := 16_000 + rand.IntN(16_000) // Linux: ephemeral ports begin at 32768
		if portsTaken.m[p] {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p))
		if err != nil {
			continue
		}
		_ = l.Close()
		portsTaken.m[p] = true
		ports = append(ports, p)
	}
	t.Fatalf("%d of %d free ports", len(ports), n)
	return nil
}
