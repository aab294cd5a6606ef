package netio

import (
	"errors"
	"io"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

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
