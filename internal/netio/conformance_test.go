package netio

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var loopback = netip.MustParseAddrPort("127.0.0.1:0")

// pairs are the ways to get two connected ends; every one must behave alike.
var pairs = []struct {
	name string
	make func(t *testing.T) (a, b Conn)
}{
	{"tcp", tcpPair},
	{"unix", unixPair},
	{"wrapped tcp", wrappedPair},
	{"pipe", func(*testing.T) (Conn, Conn) { return Pipe(netip.AddrPort{}, netip.AddrPort{}) }},
	{"tls over tcp", func(t *testing.T) (Conn, Conn) { a, b := tcpPair(t); return tlsPair(t, a, b) }},
	{"tls over wrapped tcp", func(t *testing.T) (Conn, Conn) { a, b := wrappedPair(t); return tlsPair(t, a, b) }},
	{"tls over pipe", func(t *testing.T) (Conn, Conn) {
		a, b := Pipe(netip.AddrPort{}, netip.AddrPort{})
		return tlsPair(t, a, b)
	}},
	{"tls over tls over tcp", func(t *testing.T) (Conn, Conn) {
		a, b := tcpPair(t)
		a, b = tlsPair(t, a, b)
		return tlsPair(t, a, b)
	}},
}

func tcpPair(t *testing.T) (a, b Conn) {
	t.Helper()
	l, err := Listen(loopback, ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err = Dial(t.Context(), l.Addr(), DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func unixPair(t *testing.T) (a, b Conn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = DialUnix(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if b, err = newSocket(nc); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func wrappedPair(t *testing.T) (a, b Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	x, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	y, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return Wrap(x), Wrap(y)
}

var testCert = sync.OnceValue(func() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: []string{"test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
})

func serverConfig() *tls.Config { return &tls.Config{Certificates: []tls.Certificate{testCert()}} }
func clientConfig() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }

func tlsPair(t *testing.T, a, b Conn) (Conn, Conn) {
	t.Helper()
	type res struct {
		c   Conn
		err error
	}
	ch := make(chan res, 1)
	go func() {
		c, err := ServerTLS(context.Background(), b, serverConfig())
		ch <- res{c, err}
	}()
	ca, err := ClientTLS(context.Background(), a, clientConfig())
	r := <-ch
	if err != nil || r.err != nil {
		t.Fatal(err, r.err)
	}
	return ca, r.c
}

// each runs f on both orders of every pair.
func each(t *testing.T, f func(t *testing.T, a, b Conn)) {
	for _, p := range pairs {
		t.Run(p.name, func(t *testing.T) {
			a, b := p.make(t)
			defer a.Close()
			defer b.Close()
			f(t, a, b)
		})
		t.Run(p.name+", other end", func(t *testing.T) {
			a, b := p.make(t)
			defer a.Close()
			defer b.Close()
			f(t, b, a)
		})
	}
}

func write(t *testing.T, c Conn, s string) {
	t.Helper()
	if n, err := c.Write([]byte(s)); n != len(s) || err != nil {
		t.Fatalf("write %q: %d, %v", s, n, err)
	}
}

func readN(t *testing.T, c Conn, n int) string {
	t.Helper()
	b := make([]byte, n)
	if k, err := io.ReadFull(c, b); err != nil {
		t.Fatalf("read %d of %d: %v", k, n, err)
	}
	return string(b)
}

// park waits until c is readable, however it does so.
func park(c Conn) {
	ch := make(chan struct{})
	if c.Park(func() { close(ch) }) {
		<-ch
	}
}

// tryAll drains c without blocking.
func tryAll(c Conn) (string, error) {
	var out []byte
	b := make([]byte, 100)
	for {
		n, err := c.TryRead(b)
		out = append(out, b[:n]...)
		if err != nil {
			return string(out), err
		}
	}
}

func TestBytesArriveInOrder(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		write(t, a, "hello")
		write(t, a, " world")
		if got := readN(t, b, 11); got != "hello world" {
			t.Errorf("got %q", got)
		}
		if err := WriteParts(b, []byte("x"), nil, []byte("yz")); err != nil {
			t.Error(err)
		}
		if got := readN(t, a, 3); got != "xyz" {
			t.Errorf("got %q", got)
		}
	})
}

func TestBulkIsIntactBothWaysAtOnceWithASlowReader(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		const size = 3 << 20
		data := make([]byte, size)
		r := mrand.NewChaCha8([32]byte{1})
		_, _ = r.Read(data)
		var wg sync.WaitGroup
		for _, c := range []Conn{a, b} {
			wg.Go(func() {
				if err := WriteParts(c, data[:10], data[10:size/2], data[size/2:size/2+5]); err != nil {
					t.Error(err)
				}
				for p := data[size/2+5:]; len(p) > 0; {
					n := min(len(p), 100_000)
					if _, err := c.Write(p[:n]); err != nil {
						t.Error(err)
						return
					}
					p = p[n:]
				}
				if err := c.CloseWrite(); err != nil {
					t.Error(err)
				}
			})
			wg.Go(func() {
				time.Sleep(20 * time.Millisecond)
				var got bytes.Buffer
				if c == a {
					_, err := io.Copy(&got, c)
					if err != nil {
						t.Error(err)
					}
				} else {
					for {
						park(c)
						s, err := tryAll(c)
						got.WriteString(s)
						if errors.Is(err, io.EOF) {
							break
						}
						if !errors.Is(err, ErrWouldBlock) {
							t.Error(err)
							break
						}
					}
				}
				if !bytes.Equal(got.Bytes(), data) {
					t.Errorf("%d bytes differ", got.Len())
				}
			})
		}
		wg.Wait()
	})
}

func TestTryReadDoesNotBlockAndParkWaits(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		for round := range 3 {
			if got, err := tryAll(b); got != "" || !errors.Is(err, ErrWouldBlock) {
				t.Fatalf("got %q, %v", got, err)
			}
			written := make(chan struct{})
			go func() {
				time.Sleep(10 * time.Millisecond)
				write(t, a, "abc")
				close(written)
			}()
			park(b)
			<-written
			got, err := tryAll(b)
			if got != "abc" || !errors.Is(err, ErrWouldBlock) {
				t.Fatalf("round %d: got %q, %v", round, got, err)
			}
			write(t, a, "def")
			park(b)
			if got := readN(t, b, 3); got != "def" {
				t.Fatalf("got %q", got)
			}
		}
	})
}

func TestHalfCloseLeavesTheOtherDirection(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		write(t, a, "last words")
		if err := a.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(b)
		if string(got) != "last words" || err != nil {
			t.Fatalf("got %q, %v", got, err)
		}
		var last error // the portable form may not get to look in time
		for limit := time.Now().Add(10 * time.Second); time.Now().Before(limit); {
			if _, last = b.TryRead(make([]byte, 1)); !errors.Is(last, ErrWouldBlock) {
				break
			}
		}
		if !errors.Is(last, io.EOF) {
			t.Errorf("after the end: %v", last)
		}
		park(b) // returns: the end is readable
		write(t, b, "answer")
		if got := readN(t, a, 6); got != "answer" {
			t.Errorf("got %q", got)
		}
		if _, err := a.Write([]byte("x")); err == nil {
			t.Error("write after CloseWrite: want an error")
		}
	})
}

func TestParkReturnsOnTheEnd(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		go func() {
			time.Sleep(10 * time.Millisecond)
			_ = a.Close()
		}()
		park(b)
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("got %v", err)
		}
	})
}

var errCause = errors.New("cause")

func TestInterruptFailsBlockedAndLaterCallsWithItsCause(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := b.Read(make([]byte, 10)); !errors.Is(err, errCause) {
				t.Errorf("read: %v", err)
			}
		})
		wg.Go(func() {
			big := make([]byte, 1<<20)
			for i := 0; ; i++ {
				if _, err := b.Write(big); err != nil {
					if !errors.Is(err, errCause) {
						t.Errorf("write: %v", err)
					}
					return
				}
				if i == 1000 {
					t.Error("never blocked")
					return
				}
			}
		})
		time.Sleep(20 * time.Millisecond)
		b.Interrupt(errCause)
		b.Interrupt(errors.New("second"))
		wg.Wait()
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, errCause) {
			t.Errorf("later read: %v", err)
		}
		if _, err := b.TryRead(make([]byte, 1)); !errors.Is(err, errCause) {
			t.Errorf("later try: %v", err)
		}
		if _, err := b.Write([]byte("x")); !errors.Is(err, errCause) {
			t.Errorf("later write: %v", err)
		}
		park(b)
	})
}

func TestInterruptReadLeavesTheWritingSide(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		done := make(chan error, 1)
		go func() {
			_, err := b.Read(make([]byte, 10))
			done <- err
		}()
		time.Sleep(10 * time.Millisecond)
		InterruptRead(b, errCause)
		if err := <-done; !errors.Is(err, errCause) {
			t.Errorf("blocked read: %v", err)
		}
		park(b)
		if _, err := b.TryRead(make([]byte, 1)); !errors.Is(err, errCause) {
			t.Errorf("later try: %v", err)
		}
		write(t, b, "sorry")
		if err := b.CloseWrite(); err != nil {
			t.Error(err)
		}
		if got, err := io.ReadAll(a); string(got) != "sorry" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
	})
}

func TestInterruptEndsAPark(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		go func() {
			time.Sleep(10 * time.Millisecond)
			b.Interrupt(errCause)
		}()
		park(b)
		if _, err := b.TryRead(make([]byte, 1)); !errors.Is(err, errCause) {
			t.Errorf("got %v", err)
		}
	})
}

func TestCloseFailsBlockedAndLaterCalls(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		done := make(chan error, 1)
		go func() {
			_, err := b.Read(make([]byte, 10))
			done <- err
		}()
		time.Sleep(10 * time.Millisecond)
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, ErrClosed) {
			t.Errorf("blocked read: %v", err)
		}
		if err := b.Close(); err != nil {
			t.Errorf("second close: %v", err)
		}
		b.Reset()
		b.Interrupt(errCause)
		if _, err := b.Write([]byte("x")); err == nil {
			t.Error("write: want an error")
		}
		park(b)
	})
}

func TestCloseDeliversWhatWasWritten(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		write(t, a, "bye")
		_ = a.Close()
		got, err := io.ReadAll(b)
		if string(got) != "bye" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
	})
}

func TestResetIsSeenAsOne(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		done := make(chan error, 1)
		go func() {
			_, err := b.Read(make([]byte, 10))
			done <- err
		}()
		time.Sleep(10 * time.Millisecond)
		a.Reset()
		err := <-done
		if a.RemoteAddr() == (netip.AddrPort{}) && strings.Contains(t.Name(), "unix") { // Unix sockets know no RST
			if err == nil {
				t.Error("want an error")
			}
			return
		}
		if !errors.Is(err, ErrReset) {
			t.Errorf("got %v", err)
		}
		for range 100 {
			if _, err := b.Write([]byte("x")); err != nil {
				return
			}
			time.Sleep(time.Millisecond)
		}
		t.Error("writes go on")
	})
}

func TestBytesPutBackAreReadFirst(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		write(t, a, "tail")
		p := WithPrefix(b, []byte("head, "))
		park(p)
		if got := readN(t, p, 3); got != "hea" {
			t.Errorf("got %q", got)
		}
		p = WithPrefix(p, []byte("H"))
		if got := readN(t, p, 8); got != "Hd, tail" {
			t.Errorf("got %q", got)
		}
		if _, err := p.TryRead(make([]byte, 1)); !errors.Is(err, ErrWouldBlock) {
			t.Errorf("got %v", err)
		}
	})
}

func TestPeekShowsBytesThatReadThenReturns(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		p := Peekable(b)
		written := make(chan struct{})
		go func() {
			defer close(written)
			write(t, a, "ab")
			time.Sleep(5 * time.Millisecond)
			write(t, a, "cdefgh")
		}()
		if got, err := p.Peek(5); string(got) != "abcde" || err != nil {
			t.Fatalf("got %q, %v", got, err)
		}
		if got, err := p.Peek(3); string(got) != "abc" || err != nil {
			t.Fatalf("got %q, %v", got, err)
		}
		if got := readN(t, p, 4); got != "abcd" {
			t.Errorf("got %q", got)
		}
		if got, err := p.Peek(4); string(got) != "efgh" || err != nil {
			t.Fatalf("got %q, %v", got, err)
		}
		<-written
		_ = a.CloseWrite()
		if got, err := p.Peek(9); string(got) != "efgh" || !errors.Is(err, io.EOF) {
			t.Fatalf("got %q, %v", got, err)
		}
		if got, err := io.ReadAll(p); string(got) != "efgh" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
	})
}

func TestWriteReadExchanges(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		go func() {
			buf := make([]byte, 100)
			for {
				n, err := b.Read(buf)
				if err != nil {
					return
				}
				time.Sleep(time.Millisecond)
				if _, err := b.Write(bytes.ToUpper(buf[:n])); err != nil {
					return
				}
			}
		}()
		in := make([]byte, 100)
		for range 20 {
			n, wrote, err := WriteRead(a, []byte("ping"), in)
			if string(in[:n]) != "PING" || !wrote || err != nil {
				t.Fatalf("%q %v %v", in[:n], wrote, err)
			}
		}
		_ = b.Close()
		if _, _, err := WriteRead(a, []byte("ping"), in); err == nil {
			t.Error("want an error")
		}
	})
}

func TestWriteReadOfMoreThanTheSocketTakes(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		const size = 8 << 20
		go func() {
			time.Sleep(10 * time.Millisecond)
			if _, err := io.CopyN(io.Discard, b, size); err == nil {
				_, _ = b.Write([]byte("ok"))
			}
		}()
		in := make([]byte, 100)
		n, wrote, err := WriteRead(a, make([]byte, size), in)
		if string(in[:n]) != "ok" || !wrote || err != nil {
			t.Fatalf("%q %v %v", in[:n], wrote, err)
		}
	})
}

func TestLoopEchoesUntilTheEnd(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		l, ok := b.(Looper)
		if !ok {
			t.Skip("no loop")
		}
		done := make(chan error, 1)
		go func() {
			buf := make([]byte, 50)
			done <- l.Loop(func() bool {
				for {
					n, err := b.TryRead(buf)
					if errors.Is(err, ErrWouldBlock) {
						return true
					}
					if err != nil {
						return false
					}
					if _, err := b.Write(buf[:n]); err != nil {
						t.Error(err)
						return false
					}
				}
			})
		}()
		for i := range 50 {
			s := string(bytes.Repeat([]byte{byte('a' + i%26)}, 1+i*7))
			write(t, a, s)
			if got := readN(t, a, len(s)); got != s {
				t.Fatalf("got %q", got)
			}
		}
		write(t, a, "end")
		_ = a.CloseWrite() // perhaps in one edge with the bytes
		if got, err := io.ReadAll(io.LimitReader(a, 3)); string(got) != "end" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestLoopEndsWhenTheConnectionIsClosedOrInterrupted(t *testing.T) {
	for name, end := range map[string]func(Conn){
		"close": func(c Conn) { _ = c.Close() }, "reset": Conn.Reset, "interrupt": func(c Conn) { c.Interrupt(errCause) },
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, a, b Conn) {
				l, ok := b.(Looper)
				if !ok {
					t.Skip("no loop")
				}
				done := make(chan error, 1)
				go func() {
					var seen error // by the callback
					err := l.Loop(func() bool {
						_, err := b.TryRead(make([]byte, 10))
						if errors.Is(err, ErrWouldBlock) {
							return true
						}
						seen = err
						return false
					})
					done <- errors.Join(err, seen)
				}()
				time.Sleep(10 * time.Millisecond)
				end(b)
				if err := <-done; err == nil {
					t.Error("want an error")
				}
				if name == "interrupt" {
					if _, err := b.Read(make([]byte, 1)); !errors.Is(err, errCause) {
						t.Error(err)
					}
					return
				}
				if _, err := a.Read(make([]byte, 1)); err == nil {
					t.Error("the peer sees no end")
				}
			})
		})
	}
}

func TestClosingInsideTheLoopEndsIt(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		l, ok := b.(Looper)
		if !ok {
			t.Skip("no loop")
		}
		write(t, a, "x")
		err := l.Loop(func() bool {
			n, _ := b.TryRead(make([]byte, 10))
			if n > 0 {
				write(t, b, "bye")
				_ = b.Close()
			}
			return true
		})
		if !errors.Is(err, ErrClosed) {
			t.Errorf("got %v", err)
		}
		if got, err := io.ReadAll(a); string(got) != "bye" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
	})
}

func TestUnparkPreventsTheCall(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		u, ok := b.(Unparker)
		if !ok {
			t.Skip("does not call back")
		}
		if !b.Park(func() { t.Error("called") }) {
			t.Fatal("want a parked connection")
		}
		if !u.Unpark() {
			t.Error("unpark: want true")
		}
		if u.Unpark() {
			t.Error("twice: want false")
		}
		write(t, a, "x")
		if got := readN(t, b, 1); got != "x" {
			t.Errorf("got %q", got)
		}
	})
}

func TestProbeTellsWhatAReadWould(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		p, ok := b.(Prober)
		if !ok {
			t.Skip("can't")
		}
		if s, err := tryAll(b); s != "" || !errors.Is(err, ErrWouldBlock) { // session tickets
			t.Fatal(s, err)
		}
		if r, e := p.Probe(); r || e {
			t.Errorf("idle: %v %v", r, e)
		}
		write(t, a, "x")
		eventually(t, func() bool { r, e := p.Probe(); return r && !e })
		_ = a.Close()
		eventually(t, func() bool { r, e := p.Probe(); return r && e })
		if got := readN(t, b, 1); got != "x" {
			t.Errorf("got %q", got)
		}
	})
}

func eventually(t *testing.T, f func() bool) {
	t.Helper()
	for range 20000 {
		if f() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Error("never")
}
