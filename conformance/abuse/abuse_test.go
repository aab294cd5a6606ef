package abuse

import (
	"bytes"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/conformance/running"
)

// attack is one pattern. A batch is written again and again.
type attack struct {
	name string
	// first is sent once, after preface and SETTINGS.
	first []byte
	// batch makes the n-th batch.
	batch func(n int) []byte
	// deaf attackers don't read.
	deaf bool
	// conns is how many connections attack at once, 1 if 0.
	conns int
	// work says that what is sent is a body that goes on to the origin: it costs
	// what a body costs, and needs no cut.
	work bool
	// stands says that the connection need not be cut: nothing more is read from
	// it, or it waits for the attacker.
	stands bool
}

// repeat makes n frames by f.
func repeat(n int, f func(b []byte, i int) []byte) []byte {
	var b []byte
	for i := range n {
		b = f(b, i)
	}
	return b
}

// fixed sends the same bytes each time.
func fixed(b []byte) func(int) []byte { return func(int) []byte { return b } }

// streams numbers client streams through batches of n.
func streams(batch, n, i int) uint32 { return uint32(2*(batch*n+i) + 1) }

const perBatch = 200

func attacks() []attack {
	get := request("/")
	big := request("/big")
	crumbs := strings.Repeat("\xc0", 30000) // index 64: the first entry of the dynamic table
	return []attack{
		{name: "rapid reset", batch: func(n int) []byte {
			return repeat(perBatch, func(b []byte, i int) []byte {
				id := streams(n, perBatch, i)
				return frame(frame(b, tHeaders, endStream|endHeaders, id, get), tRST, 0, id, u32(8))
			})
		}},
		{name: "made you reset: window update of 0", batch: func(n int) []byte {
			return repeat(perBatch, func(b []byte, i int) []byte {
				id := streams(n, perBatch, i)
				return frame(frame(b, tHeaders, endHeaders, id, big), tWindowUpdate, 0, id, u32(0))
			})
		}},
		{name: "made you reset: self-dependency", batch: func(n int) []byte {
			return repeat(perBatch, func(b []byte, i int) []byte {
				id := streams(n, perBatch, i)
				return frame(frame(b, tHeaders, endHeaders, id, big), tPriority, 0, id, append(u32(id), 0))
			})
		}},
		{name: "settings, deaf", deaf: true, stands: true, batch: fixed(repeat(perBatch, func(b []byte, _ int) []byte { return frame(b, tSettings, 0, 0, setting(4, 65535)) }))},
		{name: "settings", batch: fixed(repeat(perBatch, func(b []byte, _ int) []byte { return frame(b, tSettings, 0, 0, setting(4, 65535)) }))},
		{name: "ping, deaf", deaf: true, stands: true, batch: fixed(repeat(perBatch, func(b []byte, _ int) []byte { return frame(b, tPing, 0, 0, make([]byte, 8)) }))},
		{name: "ping", batch: fixed(repeat(perBatch, func(b []byte, _ int) []byte { return frame(b, tPing, 0, 0, make([]byte, 8)) }))},
		{
			name: "continuation", first: frame(nil, tHeaders, 0, 1, get),
			batch: fixed(repeat(10, func(b []byte, _ int) []byte {
				return frame(b, tContinuation, 0, 1, bytes.Repeat([]byte("\x00\x01x\x01y"), 2000))
			})),
		},
		{
			name: "empty continuation", first: frame(nil, tHeaders, 0, 1, get),
			batch: fixed(repeat(perBatch, func(b []byte, _ int) []byte { return frame(b, tContinuation, 0, 1, nil) })),
		},
		{
			name: "header bomb: 30,000 crumbs a head", conns: 3,
			batch: func(n int) []byte {
				return repeat(10, func(b []byte, i int) []byte {
					id := streams(n, 10, i)
					head := append(append(append([]byte{}, get...), "\x40\x06cookie\x03a=b"...), crumbs...)
					b = frame(b, tHeaders, endStream, id, head[:16384])
					return frame(b, tContinuation, endHeaders, id, head[16384:])
				})
			},
		},
		{name: "priority", batch: fixed(repeat(perBatch, func(b []byte, i int) []byte { return frame(b, tPriority, 0, uint32(2*i+1), append(u32(0), 1)) }))},
		{name: "unknown frames", batch: fixed(repeat(perBatch, func(b []byte, _ int) []byte { return frame(b, tUnknown, 0, 0, nil) }))},
		{
			name: "empty data", first: frame(nil, tHeaders, endHeaders, 1, big),
			batch: fixed(repeat(perBatch, func(b []byte, _ int) []byte { return frame(b, tData, 0, 1, nil) })),
		},
		{
			name: "data of one byte", work: true, first: frame(nil, tHeaders, endHeaders, 1, big),
			batch: fixed(repeat(perBatch, func(b []byte, _ int) []byte { return frame(b, tData, 0, 1, []byte{0}) })),
		},
		{name: "window update", batch: fixed(repeat(perBatch, func(b []byte, _ int) []byte { return frame(b, tWindowUpdate, 0, 0, u32(1)) }))},
		{
			name: "table size updates", batch: func(n int) []byte {
				return repeat(10, func(b []byte, i int) []byte {
					head := append(bytes.Repeat([]byte{0x20, 0x3f, 0xe1, 0x1f}, 4000), get...)
					return frame(b, tHeaders, endStream|endHeaders, streams(n, 10, i), head)
				})
			},
		},
		{
			// Responses of 1 MiB that nobody reads, window 0.
			name: "zero window", deaf: true, conns: 20, stands: true,
			first: frame(nil, tSettings, 0, 0, setting(4, 0)),
			batch: func(n int) []byte {
				if n > 0 {
					return nil
				}
				return repeat(100, func(b []byte, i int) []byte { return frame(b, tHeaders, endStream|endHeaders, uint32(2*i+1), big) })
			},
		},
	}
}

const (
	patience = 3 * time.Second        // for attacks that may stand
	mercy    = 30 * time.Second       // for those that must be cut: the machine may be busy
	maxCPU   = 100 * time.Millisecond // for each connection that attacks
	maxRSS   = 32 << 20
)

// run attacks once and reports whether the connection was cut, after what.
func (a *attack) run(v *victim, sent *atomic.Int64) (cut bool, after time.Duration) {
	c, err := net.Dial("tcp", running.Address(v.h2))
	if err != nil {
		return true, 0
	}
	defer c.Close()
	start, limit := time.Now(), mercy
	if a.stands || a.work {
		limit = patience
	}
	gone := make(chan struct{})
	if a.deaf {
		_ = c.(*net.TCPConn).SetReadBuffer(4096)
	} else {
		go func() {
			_, _ = io.Copy(io.Discard, c)
			close(gone)
		}()
	}
	_ = c.SetWriteDeadline(start.Add(limit))
	b := append(frame([]byte(preface), tSettings, 0, 0, nil), a.first...)
	for n := 0; time.Since(start) < limit; n++ {
		if n > 0 || len(b) == 0 {
			b = a.batch(n)
		} else {
			b = append(b, a.batch(0)...)
		}
		if len(b) == 0 {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		w, err := c.Write(b)
		sent.Add(int64(w))
		select {
		case <-gone:
			return true, time.Since(start)
		default:
		}
		if err != nil {
			ne, ok := err.(net.Error) //nolint:errorlint // as it is
			return !ok || !ne.Timeout(), time.Since(start)
		}
	}
	return false, time.Since(start)
}

// TestAttacksAreCutAndCheap runs every pattern against one victim, one after the
// other: what one leaves behind counts against the next.
func TestAttacksAreCutAndCheap(t *testing.T) {
	v := newVictim(t)
	v.idleCPU(time.Second) // warm
	list := attacks()
	if len(list) != 17 {
		t.Errorf("%d patterns, want 17", len(list))
	}
	for _, a := range list {
		t.Run(a.name, func(t *testing.T) {
			idle := v.idleCPU(500 * time.Millisecond)
			bad := v.canaryBad.Load()
			cpu0, rss0 := v.usage()
			start := time.Now()
			conns := max(a.conns, 1)
			type result struct {
				cut   bool
				after time.Duration
			}
			results := make(chan result, conns)
			var sent atomic.Int64
			for range conns {
				go func() {
					cut, after := a.run(v, &sent)
					results <- result{cut, after}
				}()
			}
			cuts, longest := 0, time.Duration(0)
			for range conns {
				r := <-results
				if r.cut {
					cuts++
				}
				longest = max(longest, r.after)
			}
			cpu1, rss1 := v.usage()
			took := time.Since(start)
			quiet := time.Duration(float64(idle) * float64(took) / float64(500*time.Millisecond))
			cost := (cpu1 - cpu0 - quiet) / time.Duration(conns)
			t.Logf("%d of %d cut, the last after %v; %d KiB sent, %v of processor time each, memory %+.1f MiB", cuts, conns, longest.Round(time.Millisecond), sent.Load()>>10, cost, float64(rss1-rss0)/(1<<20))
			if cuts != conns && !a.stands && !a.work {
				t.Errorf("%d of %d connections were not cut within %v", conns-cuts, conns, mercy)
			}
			if cost > maxCPU && !a.work {
				t.Errorf("%v of processor time a connection, want at most %v", cost, maxCPU)
			}
			limit := int64(maxRSS)
			switch {
			case strings.Contains(a.name, "bomb"):
				limit = 16 << 20
			case a.stands: // 2,000 responses, of which docs/flow-control.md allows each 68 KiB
				limit = 48 << 20
			}
			if rss1-rss0 > limit {
				t.Errorf("memory grew by %d MiB, want at most %d", (rss1-rss0)>>20, limit>>20)
			}
			if n := v.canaryBad.Load() - bad; n > 0 {
				t.Errorf("the canary lost %d requests", n)
			}
		})
	}
	if v.canaryOK.Load() < 100 {
		t.Errorf("the canary was answered %d times only", v.canaryOK.Load())
	}
}
