package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/bench/contender"
	"github.com/fairlead-mesh/fairlead/bench/load"
	"github.com/fairlead-mesh/fairlead/bench/origin"
	"github.com/fairlead-mesh/fairlead/bench/report"
	"github.com/fairlead-mesh/fairlead/internal/identity"
)

// bodySize is what the origins answer with.
const bodySize = 1 << 10

// workload is one kind of traffic.
type workload struct {
	name string
	// port picks the listener.
	port func(contender.Ports) int
	// tunnels says that requests go through HBONE.
	tunnels bool
	rate    float64
}

func workloads(*options) []workload {
	kinds := []workload{
		{name: "hbone-hbone", port: func(p contender.Ports) int { return p.HBONE }, tunnels: true},
		{name: "hbone-plain", port: func(p contender.Ports) int { return p.Plain }, tunnels: true},
		{name: "h1-h1", port: func(p contender.Ports) int { return p.H1 }},
	}
	var out []workload
	for _, k := range kinds {
		closed, paced := k, k
		closed.name += " closed"
		paced.name, paced.rate = paced.name+" paced 5k/s", 5000
		out = append(out, closed, paced)
	}
	return out
}

type bench struct {
	o              *options
	dir            string
	template       string
	client         *tls.Config
	plain, hbone   *origin.Server
	contenders     []*contender.Contender
	report         report.Report
	proxyCPU       int
	selectedByName []string
}

// newBench makes certificates and origins. With two processors or more the
// proxies have one for themselves.
func newBench(o *options) (*bench, error) {
	b := &bench{o: o, proxyCPU: -1}
	b.report.Baseline, b.report.Missing = "envoy", map[string]string{}
	b.report.Machine = fmt.Sprintf("%s/%s, %d processors", runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
	if o.only != "" {
		b.selectedByName = strings.Split(o.only, ",")
	}
	if _, err := exec.LookPath("taskset"); err == nil && runtime.NumCPU() > 1 {
		b.proxyCPU = 1
	}
	raw, err := os.ReadFile(o.template)
	if err != nil {
		return nil, err
	}
	b.template = string(raw)
	if b.dir, err = os.MkdirTemp("", "fairlead-bench"); err != nil {
		return nil, err
	}
	ca, err := identity.NewDevCA("cluster.local")
	if err != nil {
		return nil, err
	}
	certs := map[string]*tls.Certificate{}
	for _, sa := range []string{"client", "waypoint", "app"} {
		if certs[sa], err = ca.Issue(identity.Leaf{URIs: []string{"spiffe://cluster.local/ns/app/sa/" + sa}}); err != nil {
			return nil, err
		}
	}
	if err := contender.WriteCertificates(b.dir, ca.RootsPEM(), certs["waypoint"]); err != nil {
		return nil, err
	}
	b.client = &tls.Config{
		Certificates: []tls.Certificate{*certs["client"]}, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		InsecureSkipVerify: true, //nolint:gosec // the proxy's name is a SPIFFE identity; load does not check it
	}
	if b.plain, err = origin.New(bodySize); err != nil {
		return nil, err
	}
	b.hbone, err = origin.NewHBONE(bodySize, &tls.Config{
		Certificates: []tls.Certificate{*certs["app"]}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.Roots(),
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
	})
	return b, err
}

func (b *bench) close() {
	for _, c := range b.contenders {
		c.Stop()
	}
	_ = os.RemoveAll(b.dir)
}

// start runs a contender, or notes that it is missing.
func (b *bench) start(ctx context.Context, name string) error {
	s := contender.Spec{Dir: b.dir, Template: b.template, CPU: b.proxyCPU}
	for _, p := range []*int{&s.Ports.Plain, &s.Ports.HBONE, &s.Ports.H1, &s.Ports.Admin} {
		var err error
		if *p, err = contender.FreePort(); err != nil {
			return err
		}
	}
	s.Ports.OriginPlain, s.Ports.OriginHBONE = b.plain.Port(), b.hbone.Port()
	c, err := contender.Start(ctx, name, s)
	var missing *contender.Missing
	switch {
	case errors.As(err, &missing):
		b.report.Missing[name] = err.Error()
		return nil
	case err != nil:
		return err
	}
	b.contenders = append(b.contenders, c)
	return nil
}

func (b *bench) selected() []workload {
	var out []workload
	for _, w := range workloads(b.o) {
		use := len(b.selectedByName) == 0
		for _, n := range b.selectedByName {
			use = use || strings.Contains(w.name, n)
		}
		if use {
			out = append(out, w)
		}
	}
	return out
}

const request = "GET /api/items?page=2 HTTP/1.1\r\nhost: reviews.app.svc.cluster.local\r\nuser-agent: bench/1\r\naccept: */*\r\n\r\n"

// measure runs a workload: a short run of each contender that doesn't count,
// then rounds in turn.
func (b *bench) measure(ctx context.Context, w workload) error {
	gens := make([]*load.Generator, len(b.contenders))
	for i, c := range b.contenders {
		addr := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(w.port(c.Ports)))
		var o load.Opener = load.TCP{Address: addr}
		if w.tunnels {
			t := load.NewTunnels(addr, b.client, "10.1.2.3:9080", b.o.streams)
			defer t.Close()
			o = t
		}
		g, err := load.New(ctx, o, load.Spec{Streams: b.o.streams, Request: []byte(request), BodySize: bodySize, Rate: w.rate})
		if err != nil {
			return fmt.Errorf("%s: %w", c.Name, err)
		}
		defer g.Close()
		gens[i] = g
	}
	for round := range b.o.rounds + 1 {
		for i, c := range b.contenders {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			d := b.o.run
			if round == 0 {
				d /= 5
			}
			b.profile(ctx, w, c, round)
			before, err := c.Usage()
			if err != nil {
				return err
			}
			res := gens[i].Run(d)
			after, err := c.Usage()
			if err != nil {
				return err
			}
			if res.Errors > 0 {
				return fmt.Errorf("%s: %d errors, one of them: %s", c.Name, res.Errors, res.FirstError)
			}
			if round > 0 {
				b.record(w, c, round, res, after.CPU()-before.CPU(), after.RSS)
			}
		}
	}
	return nil
}

// profile takes a profile in the last round, if it was asked for.
func (b *bench) profile(ctx context.Context, w workload, c *contender.Contender, round int) {
	if b.o.profile == "" || round < b.o.rounds || !strings.HasPrefix(c.Name, "fairlead") {
		return
	}
	file := b.o.profile + "." + strings.NewReplacer(" ", "-", "/", "-").Replace(w.name+" "+c.Name)
	go func() {
		if err := c.Profile(ctx, max(b.o.run*4/5, time.Second), file); err != nil {
			fmt.Fprintln(os.Stderr, "profile:", err)
		}
	}()
}

func (b *bench) record(w workload, c *contender.Contender, round int, res load.Result, cpu time.Duration, rss uint64) {
	us := func(q float64) float64 { return float64(res.Latency.ValueAtQuantile(q)) / 1e3 }
	b.report.Samples = append(b.report.Samples, report.Sample{
		Workload: w.name, Contender: c.Name, Round: round,
		CPU:  float64(cpu.Microseconds()) / float64(res.Requests),
		Rate: float64(res.Requests) / res.Elapsed.Seconds(), RSS: rss,
		P50: us(50), P99: us(99), P999: us(99.9), Requests: res.Requests, Errors: res.Errors,
	})
}
