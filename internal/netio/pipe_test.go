package netio

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
)

// Who has read a head and gives the rest of it back does so while the peer goes on
// writing: the pipe then holds more than its limit.
func TestAPipeThatIsFullTakesBytesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := Pipe(netip.AddrPort{}, netip.AddrPort{})
		head, more, behind := []byte("0123456789"), bytes.Repeat([]byte("m"), pipeLimit), bytes.Repeat([]byte("b"), 2*pipeLimit)
		_, _ = a.Write(head)
		if _, err := io.ReadFull(b, make([]byte, len(head))); err != nil {
			t.Fatal(err)
		}
		_, _ = a.Write(more)
		b = WithPrefix(b, head)
		errs := make(chan error, 1)
		go func() {
			_, err := a.Write(behind)
			_ = a.CloseWrite()
			errs <- err
		}()
		synctest.Wait() // it waits for room
		var got []byte
		buf := make([]byte, 1000)
		for {
			n, err := b.Read(buf)
			got = append(got, buf[:n]...)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if err := <-errs; err != nil || !bytes.Equal(got, slices.Concat(head, more, behind)) {
			t.Errorf("%v, %d bytes", err, len(got))
		}
		_, _ = a.Close(), b.Close()
	})
}

func TestAnExchangeOfNothingIsARead(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		write(t, a, "x")
		buf := make([]byte, 10)
		if n, wrote, err := WriteRead(b, nil, buf); string(buf[:n]) != "x" || !wrote || err != nil {
			t.Errorf("%q, %v, %v", buf[:n], wrote, err)
		}
	})
}
