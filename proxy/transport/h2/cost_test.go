package h2

import (
	"runtime"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// cheapHandler answers with a fixed body and allocates nothing.
type cheapHandler struct {
	resp *message.Header
	body []byte
}

var headPool = make(chan *message.Header, 64)

func (h *cheapHandler) ServeStream(s transport.ServerStream) {
	var req *message.Header
	select {
	case req = <-headPool:
	default:
		req = new(message.Header)
	}
	s.ReadHeaders(req)
	b := s.Body()
	for {
		_, last, err := b.Next()
		if err != nil || last {
			break
		}
	}
	b.Close()
	_ = s.WriteHeaders(h.resp, false)
	_ = s.WriteData(h.body, true)
	headPool <- req
}

func (h *cheapHandler) ProtocolError(int, string) {}

type exchanger struct {
	cc        transport.ClientConn
	req, resp message.Header
	body      []byte
}

func (e *exchanger) run(t testing.TB) {
	cs, err := e.cc.NewStream()
	if err != nil {
		t.Fatal(err)
	}
	if err := cs.WriteHeaders(&e.req, false); err != nil {
		t.Fatal(err)
	}
	if err := cs.WriteData(e.body, true); err != nil {
		t.Fatal(err)
	}
	if _, _, err := cs.ReadHeaders(&e.resp); err != nil {
		t.Fatal(err)
	}
	b := cs.Body()
	for {
		_, last, err := b.Next()
		if err != nil {
			t.Fatal(err)
		}
		if last {
			break
		}
	}
	b.Close()
	cs.Release()
}

func newExchanger(t testing.TB) *exchanger {
	h := &cheapHandler{resp: header(":status", "200", "content-type", "application/grpc", "x-envoy-upstream-service-time", "3"), body: make([]byte, 1024)}
	a, _ := serve(t, &transport.ServerConfig{}, h)
	cc, err := NewClient(a, &transport.ClientConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cc.Close(nil)
		<-cc.Done()
	})
	e := &exchanger{cc: cc, body: make([]byte, 128)}
	for _, f := range [][2]string{
		{":method", "POST"},
		{":scheme", "http"},
		{":authority", "backend.default.svc.cluster.local"},
		{":path", "/pkg.Service/Method"},
		{"content-type", "application/grpc"},
		{"te", "trailers"},
		{"user-agent", "grpc-go/1.80"},
		{"x-request-id", "0123456789abcdef"},
	} {
		e.req.Add(f[0], f[1])
	}
	return e
}

func TestAnExchangeDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector drops pooled objects")
	}
	e := newExchanger(t)
	for range 200 {
		e.run(t)
	}
	// Both ends and the pipe between them.
	if n := testing.AllocsPerRun(2000, func() { e.run(t) }); n > 0.5 {
		t.Errorf("%.2f allocations an exchange", n)
	}
}

func BenchmarkExchange(b *testing.B) {
	e := newExchanger(b)
	b.ReportAllocs()
	for b.Loop() {
		e.run(b)
	}
}

func BenchmarkExchangeParallel(b *testing.B) {
	e := newExchanger(b)
	b.ReportAllocs()
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		x := &exchanger{cc: e.cc, body: e.body}
		x.req.CopyFrom(&e.req)
		for pb.Next() {
			x.run(b)
		}
	})
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

func TestAnIdleTunnelIsSmall(t *testing.T) {
	if raceEnabled {
		t.Skip("measured without the race detector")
	}
	const streams = 1000
	var ends []netio.Conn
	ch := make(chan netio.Conn, streams)
	cc, _ := dial(t, &transport.ServerConfig{MaxConcurrentStreams: streams}, &transport.ClientConfig{}, tunnelHandler(func(c netio.Conn) { ch <- c }))
	ends = append(ends, connect(t, cc), <-ch)
	before := heap()
	for range streams - 1 {
		ends = append(ends, connect(t, cc), <-ch)
	}
	// Each has carried something and is parked.
	buf := make([]byte, 4096)
	for i := 0; i < len(ends); i += 2 {
		_, _ = ends[i].Write(buf[:1000])
		for got := 0; got < 1000; {
			n, _ := ends[i+1].Read(buf)
			got += n
		}
		ends[i+1].Park(func() {})
		ends[i].Park(func() {})
	}
	waitFor(t, func() bool { workers.mu.Lock(); defer workers.mu.Unlock(); return workers.n < 8 })
	per := float64(heap()-before) / (2 * streams)
	t.Logf("%.0f octets an idle tunnel", per)
	if per > 1024 {
		t.Errorf("%.0f octets an idle tunnel, want <= 1024", per)
	}
	for _, c := range ends {
		_ = c.Close()
	}
}

func TestAnIdleConnectionHoldsNoBuffers(t *testing.T) {
	if raceEnabled {
		t.Skip("measured without the race detector")
	}
	const conns = 200
	before := heap()
	var ccs []transport.ClientConn
	for range conns {
		cc, _ := dial(t, &transport.ServerConfig{}, &transport.ClientConfig{}, echo)
		if _, _, err := roundTrip(cc, postHead("/"), "x"); err != nil {
			t.Fatal(err)
		}
		ccs = append(ccs, cc)
	}
	waitFor(t, func() bool { workers.mu.Lock(); defer workers.mu.Unlock(); return workers.n < 8 })
	per := float64(heap()-before) / (2 * conns)
	t.Logf("%.0f octets an idle connection", per)
	if per > 12<<10 {
		t.Errorf("%.0f octets an idle connection, want <= 12 KiB", per)
	}
	runtime.KeepAlive(ccs)
}
