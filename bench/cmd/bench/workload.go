package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/http2/hpack"

	"github.com/fairlead-mesh/fairlead/bench/contender"
	"github.com/fairlead-mesh/fairlead/bench/h2wire"
	"github.com/fairlead-mesh/fairlead/bench/load"
	"github.com/fairlead-mesh/fairlead/bench/origin"
)

// payload is what a request asks for.
type payload struct {
	// post is how many bytes are sent, size how many are answered.
	post, size int
	// grpc frames messages, bidi keeps the call open.
	grpc, bidi bool
	// long makes the path one of a kilobyte.
	long bool
}

// workload is one kind of traffic.
type workload struct {
	name  string
	shape contender.Shape
	payload
	// tunnels, or connections, of streams each.
	tunnels, streams int
	// rate is requests a second; 0: as many as are answered.
	rate float64
	// routes is how many the chain has; h1-h1 only.
	routes int
	// quick ones are those of make bench-quick.
	quick bool
}

const closed = "closed"

// workloads are all there are, with streams at once unless the name says
// otherwise.
func workloads(streams int) []workload {
	var out []workload
	add := func(shape contender.Shape, what string, w workload) {
		w.shape, w.routes = shape, max(w.routes, 1)
		if w.size == 0 {
			w.size = origin.Size
		}
		if w.tunnels == 0 {
			w.tunnels, w.streams = 1, max(w.streams, streams)
		}
		w.name = strings.Join(slices.DeleteFunc([]string{string(shape), what, mode(w.rate)}, func(s string) bool { return s == "" }), " ")
		out = append(out, w)
	}
	for _, shape := range []contender.Shape{contender.HBONEHBONE, contender.HBONEPlain, contender.H1H1, contender.H2TLSH1} {
		for _, rate := range []float64{0, 2000, 5000, 10000} {
			add(shape, "", workload{rate: rate, quick: shape != contender.H2TLSH1 && (rate == 0 || rate == 5000)})
		}
	}
	for _, shape := range []contender.Shape{contender.HBONEHBONE, contender.HBONEPlain} {
		add(shape, "1×100", workload{tunnels: 1, streams: 100})
		add(shape, "4×64", workload{tunnels: 4, streams: 64})
		add(shape, "post", workload{payload: payload{post: 1 << 10}})
		add(shape, "64k", workload{payload: payload{size: 64 << 10}})
		add(shape, "1m", workload{payload: payload{size: 1 << 20}, tunnels: 1, streams: 16})
	}
	add(contender.H2TLSH1, "1m", workload{payload: payload{size: 1 << 20}, tunnels: 1, streams: 16})
	add(contender.H1H1, "post", workload{payload: payload{post: 1 << 10}})
	call := payload{post: 128, grpc: true}
	add(contender.GRPC, "unary", workload{payload: call})
	add(contender.GRPC, "unary", workload{payload: call, rate: 5000})
	call.bidi = true
	add(contender.GRPC, "bidi", workload{payload: call})
	for _, routes := range []int{1000, 5000} {
		add(contender.H1H1, fmt.Sprintf("%d routes", routes), workload{routes: routes})
	}
	return out
}

// length is how long a run is, as a multiple of others. Of the fast paced ones the
// 99th percentiles are compared, which a few pauses of the machine decide if a run
// is short.
func (w *workload) length() float64 {
	if w.rate >= 10_000 && w.shape != contender.H2TLSH1 {
		return 4
	}
	return 1
}

func mode(rate float64) string {
	if rate == 0 {
		return closed
	}
	return fmt.Sprintf("paced %gk/s", rate/1000)
}

const (
	authority = "reviews.app.svc.cluster.local"
	userAgent = "bench/1"
)

func (p *payload) path() string {
	if p.size != origin.Size {
		return fmt.Sprintf("/bytes/%d", p.size)
	}
	if p.long {
		return "/api" + strings.Repeat("/segment", 125) + "/items?page=2"
	}
	return "/api/items?page=2"
}

// h1 is the request as it is sent.
func (p *payload) h1() []byte {
	method, length := "GET", ""
	if p.post > 0 {
		method, length = "POST", fmt.Sprintf("content-type: text/plain\r\ncontent-length: %d\r\n", p.post)
	}
	head := fmt.Sprintf("%s %s HTTP/1.1\r\nhost: %s\r\nuser-agent: %s\r\naccept: */*\r\n%s\r\n", method, p.path(), authority, userAgent, length)
	return append([]byte(head), strings.Repeat("y", p.post)...)
}

func (p *payload) h2(scheme string) *load.H2Request {
	r := &load.H2Request{Size: p.size, GRPC: p.grpc, Bidi: p.bidi}
	add := func(name, value string) { r.Header = append(r.Header, hpack.HeaderField{Name: name, Value: value}) }
	method, path := "GET", p.path()
	if p.post > 0 {
		method, r.Body = "POST", []byte(strings.Repeat("y", p.post))
	}
	if p.grpc {
		path, r.Body = "/app.Reviews/List", h2wire.Message(r.Body)
	}
	add(":method", method)
	add(":scheme", scheme)
	add(":authority", authority)
	add(":path", path)
	add("user-agent", userAgent)
	if p.grpc {
		add("content-type", "application/grpc")
		add("te", "trailers")
	} else {
		add("accept", "*/*")
	}
	return r
}

// open connects the streams of a workload to a contender.
func (b *bench) open(ctx context.Context, w *workload, c *contender.Contender) (all []load.Exchanger, err error) {
	addr := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(c.Ports.Of(w.shape)))
	switch w.shape {
	case contender.H1H1:
		return load.H1(ctx, load.TCP{Address: addr}, w.tunnels*w.streams, w.h1(), w.size)
	case contender.H2TLSH1, contender.GRPC:
		config, scheme := b.client, "https"
		if w.shape == contender.GRPC {
			config, scheme = nil, "http"
		}
		for range w.tunnels {
			x, err := load.H2(ctx, addr.String(), config, w.streams, w.h2(scheme))
			if err != nil {
				return nil, err
			}
			all = append(all, x...)
		}
		return all, nil
	default:
		t := load.NewTunnels(addr, b.client, b.destination(), w.streams)
		all, err := load.H1(ctx, t, w.tunnels*w.streams, w.h1(), w.size)
		if err != nil {
			t.Close()
			return nil, err
		}
		return append(all[:len(all)-1:len(all)-1], &lastStream{all[len(all)-1], t}), nil
	}
}

// destination is the authority of CONNECT: ztunnel takes only its workload's
// address, and connects to the port that it names.
func (b *bench) destination() string { return fmt.Sprintf("10.1.2.3:%d", b.plain.Port()) }

// lastStream closes the tunnels, too.
type lastStream struct {
	load.Exchanger
	t *load.Tunnels
}

// Close implements load.Exchanger.
func (l *lastStream) Close() {
	l.Exchanger.Close()
	l.t.Close()
}
