package hcm

import (
	"strings"
	"testing"
	"unsafe"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

// There are as many as CONNECT streams of all clients: a tunnel stays in a size
// class of the allocator that has no room to spare.
func TestATunnelIsSmall(t *testing.T) {
	if n := unsafe.Sizeof(tunnel{}); n > 128 {
		t.Errorf("a tunnel has %d bytes, want at most 128", n)
	}
}

func TestTunnelsShareEqualGrounds(t *testing.T) {
	var ts tunnels
	pack := func(path string) message.Packed {
		var h message.Header
		h.Add(message.Method, "CONNECT")
		h.Add(message.Path, path)
		return h.Pack()
	}
	chain := []filters.HTTPFilter{nil, nil}
	first := ts.grounds(pack("/a"), chain)
	if g := ts.grounds(pack("/a"), chain); g != first {
		t.Error("a tunnel that is admitted on the same has grounds of its own")
	}
	others := map[string]*grounds{
		"another head":    ts.grounds(pack("/b"), chain),
		"another chain":   ts.grounds(pack("/a"), []filters.HTTPFilter{nil, nil}),
		"a shorter chain": ts.grounds(pack("/a"), chain[:1]),
		"no chain":        ts.grounds(pack("/a"), nil),
	}
	for name, g := range others {
		if g == first {
			t.Errorf("%s: the same grounds", name)
		}
	}
	var h message.Header
	for what, want := range map[string]string{"another head": "/b", "another chain": "/a"} {
		if h.Unpack(others[what].head); h.Get(message.Path) != want {
			t.Errorf("%s: path %q, want %q", what, h.Get(message.Path), want)
		}
	}
	long := pack(strings.Repeat("/", sharedHead))
	if g := ts.grounds(long, nil); ts.grounds(long, nil) == g {
		t.Error("a long head is kept for others")
	}
}
