package soak

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// load sends requests at a rate until it is stopped.
type load struct {
	*site
	wg     sync.WaitGroup
	ctx    context.Context
	ids    atomic.Uint64
	closes []func()
}

// perWorker is how often one worker asks, in a second.
const perWorker = 10.0

// pace calls f at a rate until the load ends. What takes longer than the pause is not caught
// up with.
func (l *load) pace(rate float64, f func()) {
	every := time.Duration(float64(time.Second) / rate)
	t := time.NewTimer(rand.N(every))
	defer t.Stop()
	next := time.Now()
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-t.C:
		}
		f()
		if next = next.Add(every); time.Since(next) > time.Second {
			next = time.Now()
		}
		t.Reset(max(0, time.Until(next)))
	}
}

// workers runs as many workers as a rate needs; begin makes what one does, and
// what ends it.
func (l *load) workers(rate float64, begin func() (do, end func())) {
	n := max(1, int(rate/perWorker+0.5))
	for range n {
		l.wg.Go(func() {
			do, end := begin()
			defer end()
			l.pace(rate/float64(n), do)
		})
	}
}

// startLoad begins: 60 % HTTP/1, 25 % HTTP/2, 10 % gRPC, 5 % tunnels; more than
// half of it through HBONE.
func startLoad(ctx context.Context, s *site, rate float64) *load {
	l := &load{site: s, ctx: ctx}
	work := context.WithoutCancel(ctx)
	mux := func(dial func(context.Context) (net.Conn, error)) *mux {
		m := &mux{s: s, dial: dial}
		l.closes = append(l.closes, m.close)
		return m
	}
	// inside returns a way to dial through a shared HBONE connection.
	inside := func(authority string) func(context.Context) (net.Conn, error) {
		m := mux(s.dialTLS)
		return func(ctx context.Context) (net.Conn, error) { return m.open(ctx, authority) }
	}
	begin1 := func(dial func(context.Context) (net.Conn, error), limit int, hbone bool) func() (func(), func()) {
		return func() (func(), func()) {
			p := &plain{dial: dial, limit: limit, life: s.life}
			return func() { l.one(work, p, limit > 1, hbone) }, p.close
		}
	}
	nothing := func() {}
	l.workers(rate*0.25, begin1(s.dialEdge, 100, false))
	l.workers(rate*0.05, begin1(s.dialEdge, 1, false))
	for range 2 {
		l.workers(rate*0.145, begin1(inside("10.1.2.3:9080"), 100, true))
	}
	l.workers(rate*0.01, begin1(inside("10.1.2.3:9080"), 1, true))
	for _, dial := range []func(context.Context) (net.Conn, error){s.dialEdge, inside("10.1.2.3:9080"), inside("10.1.2.4:9080")} {
		m := mux(dial)
		l.workers(rate*0.25/3, func() (func(), func()) { return func() { l.two(work, m) }, nothing })
		l.workers(rate*0.10/3, func() (func(), func()) { return func() { l.chat(work, m) }, nothing })
	}
	echo := inside("10.1.2.3:9000")
	l.workers(rate*0.05, func() (func(), func()) {
		e := &echoer{l: l, dial: echo}
		return func() { e.do(work) }, e.end
	})
	return l
}

// wait is for the load to have ended.
func (l *load) wait() {
	l.wg.Wait()
	var wg sync.WaitGroup
	for _, f := range l.closes {
		wg.Go(f)
	}
	wg.Wait()
}

// question is a request.
type question struct {
	path, id, body string
	status         int // expected
}

var lorem = strings.Repeat("the quick brown fox jumps over the lazy dog and says what it has seen; ", 1000)

// ask makes a request; policy says that what must be refused may be among them.
func (l *load) ask(policy bool) question {
	n := l.ids.Add(1)
	q := question{path: "/app/", id: "id-" + strconv.FormatUint(n, 36), status: http.StatusOK}
	size := 20 + int(n%7)*100
	switch {
	case n%200 == 50: // 0.5 %
		size = 60 << 10
	case n%20 == 3:
		q.path = "/flap/"
	case n%20 == 7:
		q.path = "/secure/"
	case n%100 == 11 && policy:
		q.path, q.status = "/app/card", http.StatusForbidden
	}
	q.body = q.id + " " + lorem[:size]
	if q.status != http.StatusOK {
		q.body = "my card is 4111 1111 1111 1111, " + q.body
	}
	return q
}

// check looks at an answer.
func (l *load) check(q *question, status int, h http.Header, body []byte) error {
	switch {
	case status != q.status:
		return fmt.Errorf("%s: status %d, %.100q, flags %q", q.path, status, body, h.Get("X-Envoy-Response-Flags"))
	case status == http.StatusForbidden:
		l.ledger.denied.Add(1)
		return nil
	case h.Get("X-Id") != q.id:
		return fmt.Errorf("%s: the answer is somebody else's", q.path)
	case string(body) != q.body:
		return fmt.Errorf("%s: another body: %d bytes for %d", q.path, len(body), len(q.body))
	}
	return l.sameVersion(q.path, h)
}

// sameVersion demands that all of an answer is of one version.
func (l *load) sameVersion(path string, h http.Header) error {
	v := h.Get("X-Table")
	for _, n := range []string{"X-Host", "X-Route", "X-Request", "X-Filter"} {
		if w := h.Get(n); w != v || v == "" {
			return fmt.Errorf("versions are mixed: %s %q of table %q", n, w, v)
		}
	}
	l.ledger.saw(v)
	_, of, own := strings.Cut(h.Get("X-Cluster"), "-")
	if !own {
		return nil // flap, secure
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		return err
	}
	if of != v || h.Get("X-Origin") != strconv.Itoa(n%origins) {
		return fmt.Errorf("versions are mixed: cluster %q, origin %q of table %q", of, h.Get("X-Origin"), v)
	}
	return nil
}

// one asks over HTTP/1.1.
func (l *load) one(ctx context.Context, p *plain, kept, hbone bool) {
	l.ledger.kinds[http1].Add(1)
	q := l.ask(hbone)
	last := ""
	if !kept {
		last = "connection: close\r\n"
	}
	resp, body, err := p.do(ctx, fmt.Sprintf("POST %s HTTP/1.1\r\nhost: app\r\nx-id: %s\r\ncontent-length: %d\r\n%s\r\n%s", q.path, q.id, len(q.body), last, q.body))
	if err == nil {
		err = l.check(&q, resp.StatusCode, resp.Header, body)
	}
	if err != nil {
		l.ledger.fail(kindNames[http1], err)
	}
}

func post(ctx context.Context, path string, body io.Reader, header http.Header) *http.Request {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, (&url.URL{Scheme: "http", Host: "app", Path: path}).String(), body)
	if err != nil {
		panic(err) // it is ours
	}
	r.Header = header
	return r
}

// two asks over HTTP/2.
func (l *load) two(ctx context.Context, m *mux) {
	l.ledger.kinds[http2Kind].Add(1)
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	q := l.ask(false)
	resp, err := m.do(ctx, func() *http.Request {
		return post(ctx, q.path, strings.NewReader(q.body), http.Header{"X-Id": {q.id}})
	})
	var body []byte
	if err == nil {
		body, err = io.ReadAll(resp.Body)
		_ = resp.Body.Close()
	}
	if err == nil {
		err = l.check(&q, resp.StatusCode, resp.Header, body)
	}
	if err != nil {
		l.ledger.fail(kindNames[http2Kind], err)
	}
}

// chat is a gRPC stream: messages go back and forth.
func (l *load) chat(ctx context.Context, m *mux) {
	l.ledger.kinds[grpcKind].Add(1)
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := l.converse(ctx, m, 4, 10*time.Millisecond, func() {}); err != nil {
		l.ledger.fail(kindNames[grpcKind], err)
	}
}

func (l *load) converse(ctx context.Context, m *mux, messages int, pause time.Duration, begun func()) error {
	id := "g-" + strconv.FormatUint(l.ids.Add(1), 36)
	var pw *io.PipeWriter
	resp, err := m.do(ctx, func() *http.Request {
		var pr *io.PipeReader
		pr, pw = io.Pipe()
		return post(ctx, "/soak.Echo/Chat", pr, http.Header{"X-Id": {id}, "Content-Type": {"application/grpc"}, "Te": {"trailers"}})
	})
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	defer func() { _ = pw.CloseWithError(context.Canceled) }()
	if resp.StatusCode != http.StatusOK || resp.Header.Get("X-Id") != id {
		return fmt.Errorf("status %d, grpc-status %q, %q", resp.StatusCode, resp.Header.Get("Grpc-Status"), resp.Header.Get("Grpc-Message"))
	}
	for i := range messages {
		want := message(fmt.Sprintf("%s message %d %s", id, i, lorem[:i%20*50]))
		if _, err := pw.Write(want); err != nil {
			return fmt.Errorf("message %d: %w", i, err)
		}
		got, err := readMessage(resp.Body)
		if err != nil {
			return fmt.Errorf("message %d: %w", i, err)
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("message %d: another one came back", i)
		}
		if i == 1 {
			begun()
		}
		time.Sleep(pause)
	}
	_ = pw.Close()
	if _, err := readMessage(resp.Body); !errors.Is(err, io.EOF) {
		return fmt.Errorf("at the end: %w", err)
	}
	if st, n := resp.Trailer.Get("Grpc-Status"), resp.Trailer.Get("X-Messages"); st != "0" || n != strconv.Itoa(messages) {
		return fmt.Errorf("grpc-status %q after %s messages: %s", st, n, resp.Trailer.Get("Grpc-Message"))
	}
	return l.sameVersion("", resp.Header)
}

// echoer has a tunnel open and sends through it, until it is old.
type echoer struct {
	l     *load
	dial  func(context.Context) (net.Conn, error)
	c     net.Conn
	until time.Time
}

func (e *echoer) do(ctx context.Context) {
	e.l.ledger.kinds[tunnelKind].Add(1)
	if err := e.echo(ctx); err != nil {
		e.l.ledger.fail(kindNames[tunnelKind], err)
		e.drop()
	}
}

func (e *echoer) drop() {
	if e.c != nil {
		_ = e.c.Close()
		e.c = nil
	}
}

func (e *echoer) end() { e.drop() }

func (e *echoer) echo(ctx context.Context) error {
	if e.c != nil && time.Now().After(e.until) {
		if err := e.finish(); err != nil {
			return err
		}
	}
	if e.c == nil {
		c, err := e.dial(ctx)
		if err != nil {
			return err
		}
		e.c, e.until = c, time.Now().Add(e.l.life)
	}
	want := []byte(fmt.Sprintf("%d %s", e.l.ids.Add(1), lorem[:rand.N(900)]))
	c := e.c
	late := time.AfterFunc(patience, func() { c.(*tunnel).stop() })
	defer late.Stop()
	if _, err := c.Write(want); err != nil {
		return fmt.Errorf("writing: %w", err)
	}
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil {
		return fmt.Errorf("after %d bytes: %w", n, err)
	}
	if !bytes.Equal(got, want) {
		return errors.New("other bytes came back")
	}
	return nil
}

// finish ends the tunnel's one direction and waits for the other to end.
func (e *echoer) finish() error {
	t, _ := e.c.(*tunnel)
	_ = t.CloseWrite()
	late := time.AfterFunc(patience, t.stop)
	n, err := io.Copy(io.Discard, t)
	late.Stop()
	e.drop()
	if n > 0 || err != nil {
		return fmt.Errorf("ending: %d bytes, %w", n, err)
	}
	return nil
}
