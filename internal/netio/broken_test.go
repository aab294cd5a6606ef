package netio_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/conntest"
	"github.com/fairlead-mesh/fairlead/internal/netio"
)

// A join whose connection breaks, at whichever step, ends once and gives both back.
func TestAJoinThatBreaksEndsOnce(t *testing.T) {
	for name, pair := range conntest.Pairs {
		t.Run(name, func(t *testing.T) {
			conntest.EachStep(t, func(t *testing.T, n int) (broke bool) {
				client, a := pair(t)
				b, server := pair(t)
				j, tells := conntest.Break(a, n)
				far, farTells := conntest.Break(b, 1<<20)
				ends := make(chan error, 2)
				netio.JoinAsync(j, far, netio.JoinOptions{}, func(_, _ uint64, err error) { ends <- err })
				served := make(chan struct{})
				go func() {
					defer close(served)
					b := make([]byte, 5)
					if _, err := io.ReadFull(server, b); err == nil {
						_, _ = server.Write(b)
					}
					_, _ = io.Copy(io.Discard, server)
					_ = server.Close()
				}()
				if _, err := client.Write([]byte("hello")); err == nil {
					_, _ = io.ReadFull(client, make([]byte, 5))
				}
				_ = client.CloseWrite()
				_, _ = io.Copy(io.Discard, client)
				_ = client.Close()
				err := <-ends
				<-served
				broke = tells.Broke()
				if je := (*netio.JoinError)(nil); broke != errors.As(err, &je) {
					t.Errorf("step %d: %v", n, err)
				}
				if !tells.Ended() || !farTells.Ended() {
					t.Errorf("step %d: a connection is kept", n)
				}
				select {
				case <-ends:
					t.Errorf("step %d: it ends twice", n)
				case <-time.After(time.Millisecond):
				}
				return broke
			})
		})
	}
}

// A handshake that breaks closes what it was given.
func TestAHandshakeThatBreaksClosesItsConnection(t *testing.T) {
	for name, pair := range conntest.Pairs {
		t.Run(name, func(t *testing.T) {
			conntest.EachStep(t, func(t *testing.T, n int) (broke bool) {
				a, b := pair(t)
				c, tells := conntest.Break(b, n)
				client := make(chan error, 1)
				go func() {
					_, err := netio.ClientTLS(context.Background(), a, &tls.Config{InsecureSkipVerify: true})
					client <- err
				}()
				_, err := netio.ServerTLS(t.Context(), c, &tls.Config{Certificates: []tls.Certificate{netio.TestCertificate()}, MinVersion: tls.VersionTLS13})
				broke = tells.Broke()
				if broke != (err != nil) || broke && !tells.Ended() {
					t.Errorf("step %d: %v, closed: %v", n, err, tells.Ended())
				}
				_ = c.Close()
				<-client
				_ = a.Close()
				return broke
			})
		})
	}
}
