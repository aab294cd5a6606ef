package netio

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// greet answers each connection with one byte until the listener is closed, and
// is as slow to accept as a busy process.
func greet(l *Listener, wg *sync.WaitGroup) {
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("x"))
			_ = c.Close()
			time.Sleep(200 * time.Microsecond)
		}
	})
}

// A successor binds the same port, the predecessor is retired: no client may
// notice, whichever socket the kernel had put it on.
func TestNoConnectionIsLostWhenAListenerSucceedsAnother(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) {
			o := ListenOptions{ReusePort: true}
			old, err := Listen(netip.AddrPortFrom(netip.MustParseAddr(host), 0), o)
			if err != nil {
				if host == "::1" {
					t.Skip(err)
				}
				t.Fatal(err)
			}
			var serving, asking sync.WaitGroup
			greet(old, &serving)
			var asked, lost atomic.Int64
			var first atomic.Pointer[error]
			stop := make(chan struct{})
			addr := old.Addr().String()
			for range 8 {
				asking.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
						}
						asked.Add(1)
						if err := ask(addr); err != nil {
							lost.Add(1)
							first.CompareAndSwap(nil, &err)
						}
					}
				})
			}
			for range 5 {
				next, err := Listen(old.Addr(), o)
				if err != nil {
					t.Fatal(err)
				}
				greet(next, &serving)
				time.Sleep(10 * time.Millisecond)
				old.Retire()
				<-old.closed
				_ = old.Close() // returns when the socket has gone, to which the next one would let connections come again
				old = next
			}
			close(stop)
			asking.Wait()
			_ = old.Close()
			serving.Wait()
			if n := lost.Load(); n > 0 {
				t.Errorf("%d of %d connections were lost: %v", n, asked.Load(), *first.Load())
			}
			t.Logf("%d connections", asked.Load())
		})
	}
}

func ask(addr string) error {
	c, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	b, err := io.ReadAll(c)
	if err == nil && string(b) != "x" {
		err = fmt.Errorf("answered %q", b)
	}
	return err
}
