package contender

import "testing"

// The system hands out a port again as soon as it is free.
func TestPortsOfOneContenderDiffer(t *testing.T) {
	for range 300 {
		var p Ports
		if err := p.Listen(); err != nil {
			t.Fatal(err)
		}
		seen := map[int]bool{}
		for _, port := range []int{p.Plain, p.HBONE, p.H1, p.H2TLS, p.GRPC, p.Admin} {
			if port == 0 || seen[port] {
				t.Fatalf("%+v", p)
			}
			seen[port] = true
		}
	}
}
