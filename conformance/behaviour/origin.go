package behaviour

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	authv3pb "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
)

// Answer is how an origin server answers one request.
type Answer struct {
	// Raw is sent as it is instead of a response made from the other fields.
	Raw string
	// Status is 200 when zero.
	Status  int
	Headers []string
	// Body is the origin's name when nil.
	Body *string
	// Chunked sends the body as one chunk, with the trailers.
	Chunked  bool
	Trailers []string
	// Delay is waited before anything is sent.
	Delay time.Duration
	// Close closes the connection after the response, or without one when
	// there is nothing else in the answer; Silent sends nothing and keeps it.
	Close, Silent bool
	// Interim are the statuses of responses before the final one; GoAway and
	// Reset are the codes, of HTTP/2 only, of frames that are sent instead of
	// the answer; ResetLate sends the answer's start first.
	Interim   []int
	GoAway    string
	Reset     string
	ResetLate bool
	// Early sends the answer before the request's body is read.
	Early bool

	empty bool // only "close" was said
}

// parseAnswers reads a script: lines of directives, an answer ends with a line
// "---". The last answer is given to all later requests.
func parseAnswers(text string) ([]Answer, error) {
	answers := []Answer{{empty: true}}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		a := &answers[len(answers)-1]
		key, val, _ := strings.Cut(line, " ")
		var err error
		switch key {
		case "---":
			answers = append(answers, Answer{empty: true})
			continue
		case "close":
			a.Close = true
			continue
		case "raw":
			var s string
			s, err = strconv.Unquote(val)
			a.Raw += s
		case "status":
			a.Status, err = strconv.Atoi(val)
		case "header":
			a.Headers = append(a.Headers, val)
		case "body":
			var s string
			s, err = strconv.Unquote(val)
			a.Body = &s
		case "chunked":
			a.Chunked = true
		case "trailer":
			a.Trailers, a.Chunked = append(a.Trailers, val), true
		case "delay":
			a.Delay, err = time.ParseDuration(val)
		case "silent":
			a.Silent = true
		case "interim":
			code, times, _ := strings.Cut(val, " ")
			n, m := 0, 1
			if n, err = strconv.Atoi(code); err == nil && times != "" {
				m, err = strconv.Atoi(times)
			}
			for range m {
				a.Interim = append(a.Interim, n)
			}
		case "goaway":
			a.GoAway = val
		case "reset":
			a.Reset, a.ResetLate = val, false
			if code, ok := strings.CutPrefix(val, "late "); ok {
				a.Reset, a.ResetLate = code, true
			}
			if _, ok := errorCodes[a.Reset]; !ok {
				err = errors.New("not a code")
			}
		case "early":
			a.Early = true
		default:
			err = fmt.Errorf("%q is not a directive of an origin", key)
		}
		if err != nil {
			return nil, fmt.Errorf("%q: %w", line, err)
		}
		a.empty = false
	}
	return answers, nil
}

// recording is what both origins saw of one case.
type recording struct {
	mu      sync.Mutex
	scripts [2][]Answer
	seen    []*record
	counts  [2]int

	verdicts []Verdict
	asked    []*authv3pb.CheckRequest
}

type record struct {
	origin int
	msg    message
	done   bool
}

// origins are two HTTP/1.1 servers on loopback that record requests.
type origins struct {
	listeners [2]net.Listener
	authz     *authorizer
	mu        sync.Mutex
	cur       *recording
	conns     map[net.Conn]struct{}
	wg        sync.WaitGroup
}

func startOrigins() (*origins, error) {
	o := &origins{cur: &recording{}, conns: map[net.Conn]struct{}{}}
	for i := range o.listeners {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		o.listeners[i] = l
	}
	for i := range o.listeners {
		o.wg.Go(func() { o.accept(i) })
	}
	var err error
	o.authz, err = startAuthorizer(o)
	return o, err
}

func (o *origins) port(i int) int { return o.listeners[i].Addr().(*net.TCPAddr).Port }

func (o *origins) close() {
	for _, l := range o.listeners {
		l.Close()
	}
	o.hangUp()
	if o.authz != nil {
		o.authz.s.Stop()
	}
	o.wg.Wait()
}

// hangUp ends the connections that are open.
func (o *origins) hangUp() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for c := range o.conns {
		c.Close()
	}
}

// begin makes scripts the ones of all requests from now on.
func (o *origins) begin(scripts [2][]Answer, verdicts []Verdict) *recording {
	rec := &recording{scripts: scripts, verdicts: verdicts}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.cur = rec
	return rec
}

func (o *origins) accept(i int) {
	for {
		c, err := o.listeners[i].Accept()
		if err != nil {
			return
		}
		o.mu.Lock()
		o.conns[c] = struct{}{}
		o.mu.Unlock()
		o.wg.Go(func() {
			defer func() {
				c.Close()
				o.mu.Lock()
				delete(o.conns, c)
				o.mu.Unlock()
			}()
			r := bufio.NewReader(c)
			if p, err := r.Peek(4); err == nil && string(p) == "PRI " {
				o.serveH2(i, c, r)
				return
			}
			for o.serve(i, c, r) {
			}
		})
	}
}

// serve handles one request and reports whether the connection stays open.
func (o *origins) serve(i int, c net.Conn, r *bufio.Reader) bool {
	m, err := readHead(r)
	if err != nil {
		return false
	}
	o.mu.Lock()
	rec := o.cur
	o.mu.Unlock()
	entry, a := rec.add(i, m)
	body := func() bool {
		full := *m
		err := full.readBody(r, false)
		if err != nil {
			full.state = "incomplete"
		}
		rec.finish(entry, full)
		return err == nil
	}
	if a.Early {
		time.Sleep(a.Delay)
		if _, err := io.WriteString(c, a.text(i, m.start)); err != nil || a.Close {
			return false
		}
		return body()
	}
	if !body() {
		return false
	}
	time.Sleep(a.Delay)
	if a.empty && a.Close {
		return false
	}
	if !a.Silent {
		if _, err := io.WriteString(c, a.text(i, m.start)); err != nil {
			return false
		}
	}
	return !a.Close
}

func (rec *recording) add(i int, m *message) (*record, Answer) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	n := rec.counts[i]
	rec.counts[i]++
	e := &record{origin: i, msg: *m}
	rec.seen = append(rec.seen, e)
	script := rec.scripts[i]
	if len(script) == 0 {
		return e, Answer{}
	}
	return e, script[min(n, len(script)-1)]
}

func (rec *recording) finish(e *record, m message) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	e.msg, e.done = m, true
}

// canonical returns what was seen, after giving bodies on their way a moment.
func (rec *recording) canonical(sent string) string {
	for range 20 {
		if rec.complete() {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if len(rec.seen) == 0 {
		return "nothing\n"
	}
	var b strings.Builder
	for n, e := range rec.seen {
		if n > 0 {
			b.WriteString("\n")
		}
		m := e.msg
		if !e.done {
			m.state = "incomplete"
		}
		fmt.Fprintf(&b, "origin%d: ", e.origin+1)
		m.canonical(&b, func(h header) (string, bool) {
			switch name := strings.ToLower(h.name); {
			case name == "x-request-id" && !strings.Contains(sent, h.value),
				name == "x-envoy-expected-rq-timeout-ms" && rec.retried(n):
				return "*", true
			}
			return h.value, true
		})
	}
	return b.String()
}

// retried reports whether entry n is a later attempt: what is left of its
// timeout depends on the clock.
func (rec *recording) retried(n int) bool {
	return n > 0 && rec.seen[n].msg.get("x-request-id") == rec.seen[n-1].msg.get("x-request-id")
}

func (rec *recording) complete() bool {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	for _, e := range rec.seen {
		if !e.done {
			return false
		}
	}
	return true
}

// text is the response of a to a request with the given first line.
func (a *Answer) text(i int, start string) string {
	if a.Raw != "" {
		return a.Raw
	}
	status := a.Status
	if status == 0 {
		status = 200
	}
	body := fmt.Sprintf("origin%d", i+1)
	if a.Body != nil {
		body = *a.Body
	}
	var b strings.Builder
	for _, code := range a.Interim {
		fmt.Fprintf(&b, "HTTP/1.1 %d Interim\r\nx-interim: %d\r\n\r\n", code, code)
	}
	fmt.Fprintf(&b, "HTTP/1.1 %d Status\r\n", status)
	for _, h := range a.Headers {
		b.WriteString(h + "\r\n")
	}
	bodyless := strings.HasPrefix(start, "HEAD ") || status == 204 || status == 304
	switch {
	case a.Chunked:
		b.WriteString("transfer-encoding: chunked\r\n\r\n")
		if bodyless {
			break
		}
		fmt.Fprintf(&b, "%x\r\n%s\r\n0\r\n", len(body), body)
		for _, t := range a.Trailers {
			b.WriteString(t + "\r\n")
		}
		b.WriteString("\r\n")
	case status == 204 || status == 304:
		b.WriteString("\r\n")
	default:
		fmt.Fprintf(&b, "content-length: %d\r\n\r\n", len(body))
		if !bodyless {
			b.WriteString(body)
		}
	}
	return b.String()
}
