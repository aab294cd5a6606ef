package abuse

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// generator asks over HTTP/1.1 from one goroutine that never waits for an answer: it
// costs less than what it asks, and is late for nothing but its own work. Each
// request has a connection that nobody else waits on.
type generator struct {
	t       *testing.T
	port    int
	request []byte
	poll    int
	idle    []*question
	open    map[int32]*question
	began   time.Time
	closed  bool // an answer is followed by a question
	answers []answered
	late    []time.Duration // how long after it was due a question left
	dropped int             // no connection was free
}

// question is a connection.
type question struct {
	fd  int
	due time.Duration
	buf []byte
}

// answered is a question that was due, since the start, and what became of it: a status, 0
// for a connection that ended.
type answered struct {
	due, took time.Duration
	status    int
}

const (
	// maxConns bounds the questions that wait.
	maxConns = 1000
	// inTime is when an answer is still of use.
	inTime = time.Second
	// nap is how long the generator sleeps at most.
	nap = 100 * time.Microsecond
)

// newGenerator asks for path at a port of loopback.
func newGenerator(t *testing.T, port int, path string) *generator {
	t.Helper()
	poll, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	g := &generator{t: t, port: port, poll: poll, open: map[int32]*question{}, request: []byte("GET " + path + " HTTP/1.1\r\nhost: a\r\n\r\n")}
	t.Cleanup(func() {
		for _, q := range g.open {
			_ = syscall.Close(q.fd)
		}
		_ = syscall.Close(poll)
	})
	return g
}

// dial opens a connection; a refused one is nil.
func (g *generator) dial() *question {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		g.t.Fatal(err)
	}
	if err := syscall.Connect(fd, &syscall.SockaddrInet4{Port: g.port, Addr: [4]byte(net.IPv4(127, 0, 0, 1).To4())}); err != nil {
		_ = syscall.Close(fd)
		return nil
	}
	_ = syscall.SetNonblock(fd, true)
	_ = syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1)
	if err := syscall.EpollCtl(g.poll, syscall.EPOLL_CTL_ADD, fd, &syscall.EpollEvent{Events: syscall.EPOLLIN | syscall.EPOLLRDHUP, Fd: int32(fd)}); err != nil {
		g.t.Fatal(err)
	}
	q := &question{fd: fd}
	g.open[int32(fd)] = q
	return q
}

func (g *generator) now() time.Duration { return time.Since(g.began) }

// ask sends the question that was due.
func (g *generator) ask(due time.Duration) {
	g.late = append(g.late, g.now()-due)
	var q *question
	if n := len(g.idle); n > 0 {
		q = g.idle[n-1]
		g.idle = g.idle[:n-1]
	} else if len(g.open) < maxConns {
		q = g.dial()
	}
	if q == nil {
		g.dropped++
		return
	}
	q.due, q.buf = due, q.buf[:0]
	if n, _ := syscall.Write(q.fd, g.request); n != len(g.request) {
		g.end(q)
	}
}

// end gives up the connection of a question.
func (g *generator) end(q *question) {
	delete(g.open, int32(q.fd))
	_ = syscall.Close(q.fd)
	g.answers = append(g.answers, answered{q.due, g.now() - q.due, 0})
}

// hear takes what has come.
func (g *generator) hear(events []syscall.EpollEvent) int {
	n, _ := syscall.EpollWait(g.poll, events, 0)
	var b [4096]byte
	for i := range max(n, 0) {
		q := g.open[events[i].Fd]
		if q == nil {
			continue
		}
		r, err := syscall.Read(q.fd, b[:])
		if err == syscall.EAGAIN {
			continue
		}
		if r <= 0 {
			if i := slices.Index(g.idle, q); i >= 0 {
				g.idle = slices.Delete(g.idle, i, i+1)
			}
			g.end(q)
			continue
		}
		q.buf = append(q.buf, b[:r]...)
		status, whole := parseAnswer(q.buf)
		if !whole {
			continue
		}
		now := g.now()
		g.answers = append(g.answers, answered{q.due, now - q.due, status})
		g.idle = append(g.idle, q)
		if g.closed {
			g.ask(now)
		}
	}
	return n
}

// parseAnswer returns the status of an answer that is whole.
func parseAnswer(b []byte) (status int, whole bool) {
	head, body, ok := bytes.Cut(b, []byte("\r\n\r\n"))
	if !ok || len(head) < 12 {
		return 0, false
	}
	status, _ = strconv.Atoi(string(head[9:12]))
	_, rest, ok := bytes.Cut(head, []byte("\r\ncontent-length: "))
	if !ok {
		return status, true
	}
	digits, _, _ := bytes.Cut(rest, []byte("\r\n"))
	n, _ := strconv.Atoi(string(digits))
	return status, len(body) >= n
}

// run offers rate requests a second for d, at random times; those of conns
// connections that each wait for their answer if rate is 0.
func (g *generator) run(rate float64, conns int, d time.Duration) *outcome {
	g.answers, g.late, g.dropped = make([]answered, 0, int(rate*d.Seconds()*1.2)+1<<16), g.late[:0], 0
	g.closed = rate == 0
	runtime.GC()
	before := processorTime()
	g.began = time.Now()
	next := d
	if g.closed {
		for range conns {
			g.ask(g.now())
		}
	} else {
		next = 0
	}
	events := make([]syscall.EpollEvent, 256)
	for now := g.now(); ; now = g.now() {
		if now >= d {
			g.closed = false
			if len(g.idle) == len(g.open) || now > d+20*time.Second {
				break
			}
		}
		heard := g.hear(events)
		for ; next < d && next <= now; next += time.Duration(rand.ExpFloat64() / rate * float64(time.Second)) {
			g.ask(next)
		}
		if heard <= 0 {
			if pause := min(nap, next-g.now()); next >= d || pause > 0 {
				ts := syscall.NsecToTimespec(int64(min(nap, max(pause, nap/10))))
				_ = syscall.Nanosleep(&ts, nil)
			}
		}
	}
	return g.outcome(d, processorTime()-before)
}

// outcome is what a run came to.
type outcome struct {
	d                             time.Duration
	goodput                       float64 // requests a second that were answered 200 in time
	p50, p99                      time.Duration
	good, refused, other, dropped int
	lateness                      time.Duration // of the generator, 99th percentile
	busy                          float64       // share of a processor that it took
	answers                       []answered
}

func (g *generator) outcome(d, cpu time.Duration) *outcome {
	o := &outcome{d: d, dropped: g.dropped, busy: cpu.Seconds() / d.Seconds(), answers: g.answers, lateness: percentile(g.late, 99)}
	var took []time.Duration
	for _, a := range o.answers {
		switch {
		case a.status == 200 && a.took <= inTime:
			o.good++
			took = append(took, a.took)
		case a.status == 503 || a.status == 429:
			o.refused++
		default:
			o.other++
		}
	}
	o.goodput = float64(o.good) / d.Seconds()
	o.p50, o.p99 = percentile(took, 50), percentile(took, 99)
	return o
}

// String implements fmt.Stringer.
func (o *outcome) String() string {
	const exact = 10 * time.Microsecond
	return fmt.Sprintf("%.0f/s in time, p50 %s, p99 %s, %d refused, %d late or cut, %d without a connection; what asks was late by %s and busy %.0f %%",
		o.goodput, o.p50.Round(exact), o.p99.Round(exact), o.refused, o.other, o.dropped, o.lateness.Round(exact), 100*o.busy)
}

func percentile(d []time.Duration, p int) time.Duration {
	if len(d) == 0 {
		return 0
	}
	d = slices.Clone(d)
	slices.Sort(d)
	return d[min(len(d)*p/100, len(d)-1)]
}

// processorTime is what this process has used.
func processorTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// pin lets all threads of a process, 0 for this one, run on one processor.
func pin(t *testing.T, pid, cpu int) {
	t.Helper()
	dir := "/proc/self/task"
	if pid != 0 {
		dir = "/proc/" + strconv.Itoa(pid) + "/task"
	}
	threads, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	mask := [16]uint64{1 << cpu}
	for _, th := range threads {
		tid, _ := strconv.Atoi(th.Name())
		if _, _, e := syscall.RawSyscall(syscall.SYS_SCHED_SETAFFINITY, uintptr(tid), unsafe.Sizeof(mask), uintptr(unsafe.Pointer(&mask))); e != 0 && e != syscall.ESRCH {
			t.Skipf("pinning to processor %d: %v", cpu, e)
		}
	}
}
