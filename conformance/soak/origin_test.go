package soak

import (
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/conformance/running"
)

// origins is how many plain origins there are: a version's cluster has the one
// of its number.
const origins = 3

// origin answers with what it was sent, and says who it is and what it was told
// of the route.
func origin(index int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		for _, n := range []string{"X-Id", "X-Request", "X-Filter"} {
			h[n] = r.Header[n]
		}
		h.Set("X-Origin", strconv.Itoa(index))
		if r.Header.Get("Content-Type") == "application/grpc" {
			chat(w, r)
			return
		}
		if r.Header.Get("X-Long") != "" {
			transfer(w, r)
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		_, _ = w.Write(body)
	})
}

// chat sends each message back when it has come, and a status at the end.
func chat(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status, X-Messages")
	rc := http.NewResponseController(w)
	_ = rc.Flush()
	n := 0
	for ; ; n++ {
		m, err := readMessage(r.Body)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		if _, err := w.Write(m); err != nil {
			return
		}
		_ = rc.Flush()
	}
	w.Header().Set("Grpc-Status", "0")
	w.Header().Set("X-Messages", strconv.Itoa(n))
}

// transfer takes an upload and answers with its digest, or makes a download of as
// many pieces as it is asked for, one a pause.
func transfer(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("X-Long") == "upload" {
		sum := sha256.New()
		if _, err := io.Copy(sum, r.Body); err != nil {
			panic(http.ErrAbortHandler)
		}
		_, _ = fmt.Fprintf(w, "%x", sum.Sum(nil))
		return
	}
	rc := http.NewResponseController(w)
	n, _ := strconv.Atoi(r.Header.Get("X-Pieces"))
	for i := range n {
		if _, err := io.WriteString(w, piece(r.Header.Get("X-Id"), i)); err != nil {
			return
		}
		_ = rc.Flush()
		time.Sleep(transferPause)
	}
}

// transferPause is between two pieces.
const transferPause = 100 * time.Millisecond

// piece is the i-th piece of a transfer.
func piece(id string, i int) string { return fmt.Sprintf("%s %d %s\n", id, i, lorem[:1000]) }

func both() *http.Protocols {
	p := &http.Protocols{}
	p.SetHTTP1(true)
	p.SetHTTP2(true)
	p.SetUnencryptedHTTP2(true)
	return p
}

// serve runs a server until the test ends.
func serve(t *testing.T, h http.Handler, cfg *tls.Config) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", running.Address(0))
	if err != nil {
		t.Fatal(err)
	}
	port = running.Port(l)
	// A connection that was opened in a burst and not used yet is idle, too: closed at
	// its time, it would take the request with it that is just on its way.
	s := &http.Server{Handler: h, ReadHeaderTimeout: 24 * time.Hour, Protocols: both()}
	if cfg != nil {
		l = tls.NewListener(l, cfg)
	}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return port
}

// echoes sends back the bytes of each connection.
func echoes(t *testing.T) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", running.Address(0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	return running.Port(l)
}

// flapper is an endpoint that comes and goes: it answers, refuses connections,
// answers 503, or resets what it has read.
type flapper struct {
	port  int
	mode  atomic.Int32
	hits  [4]atomic.Int64
	mu    sync.Mutex
	serve *http.Server
}

const (
	flapAnswers = iota
	flapUnavailable
	flapResets
	flapRefuses
	flapModes
)

func newFlapper(t *testing.T) *flapper {
	t.Helper()
	f := &flapper{port: keepPort(t)}
	if err := f.open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.close)
	return f
}

func (f *flapper) open() error {
	l, err := net.Listen("tcp", running.Address(f.port))
	if err != nil {
		return err
	}
	well := origin(-1)
	s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m := f.mode.Load()
		f.hits[m].Add(1)
		switch m {
		case flapUnavailable:
			w.WriteHeader(http.StatusServiceUnavailable)
		case flapResets:
			panic(http.ErrAbortHandler)
		default:
			well.ServeHTTP(w, r)
		}
	})}
	f.mu.Lock()
	f.serve = s
	f.mu.Unlock()
	go func() { _ = s.Serve(l) }()
	return nil
}

func (f *flapper) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.serve != nil {
		_ = f.serve.Close()
		f.serve = nil
	}
}

// flap goes on to the next mode.
func (f *flapper) flap() error {
	next := (f.mode.Load() + 1) % flapModes
	f.mode.Store(next)
	switch next {
	case flapRefuses:
		f.close()
	case flapAnswers:
		if err := f.open(); err != nil {
			return fmt.Errorf("the endpoint that flaps can't come back: %w", err)
		}
	}
	return nil
}
