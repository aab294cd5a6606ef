package proxy_test

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
)

// tcpServer has serve run for each connection, which ends with it, and returns its
// port. When the test is over, so are they.
func tcpServer(t *testing.T, serve func(c net.Conn, over <-chan struct{})) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer context.AfterFunc(ctx, func() { _ = c.Close() })()
				defer c.Close()
				serve(c, ctx.Done())
			})
		}
	})
	t.Cleanup(func() { end(); _ = l.Close(); running.Wait() })
	return l.Addr().(*net.TCPAddr).Port //nolint:forcetypeassert // of a TCP listener
}

// silentServer accepts connections and never answers.
func silentServer(t *testing.T) (port int) {
	t.Helper()
	return tcpServer(t, func(_ net.Conn, over <-chan struct{}) { <-over })
}

// tcpOrigin greets, if it has a greeting, and then echoes.
func tcpOrigin(t *testing.T, greeting string) (port int) {
	t.Helper()
	return tcpServer(t, func(c net.Conn, _ <-chan struct{}) {
		_, _ = io.WriteString(c, greeting)
		_, _ = io.Copy(c, c)
	})
}

// endingServer reads the beginning of a request, says last, and closes the
// connection.
func endingServer(t *testing.T, last string) (port int) {
	t.Helper()
	return tcpServer(t, func(c net.Conn, _ <-chan struct{}) {
		_, _ = c.Read(make([]byte, 4096))
		_, _ = io.WriteString(c, last)
	})
}
