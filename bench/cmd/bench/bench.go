package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/identity"

	"github.com/fairlead-mesh/fairlead/bench/contender"
	"github.com/fairlead-mesh/fairlead/bench/load"
	"github.com/fairlead-mesh/fairlead/bench/origin"
	"github.com/fairlead-mesh/fairlead/bench/report"
)

type bench struct {
	o                   *options
	dir                 string
	client              *tls.Config
	ca                  *identity.DevCA
	clients             int // so many were given a certificate of their own
	plain, hbone, calls *origin.Server
	names               []string
	running             []*contender.Contender
	report              report.Report
	proxyCPU            int
	deadline            time.Time
}

// newBench makes certificates and origins. With two processors or more the
// proxies have one for themselves, and this process, load and origins, another.
func newBench(o *options) (*bench, error) {
	b := &bench{o: o, proxyCPU: -1, names: split(o.contenders)}
	b.report.Baseline, b.report.Missing, b.report.Skipped = o.baseline, map[string]string{}, map[string]string{}
	b.report.Machine = machine()
	if o.budget > 0 {
		b.deadline = time.Now().Add(o.budget)
	}
	if err := pin(); err == nil {
		b.proxyCPU = 1
	} else {
		b.report.Skipped["pinning"] = err.Error() + ": proxies and generator disturb each other"
	}
	var err error
	if b.dir, err = os.MkdirTemp("", "fairlead-bench"); err != nil {
		return nil, err
	}
	ca, err := identity.NewDevCA("cluster.local")
	if err != nil {
		return nil, err
	}
	b.ca = ca
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
	if b.plain, err = origin.New(); err != nil {
		return nil, err
	}
	if b.calls, err = origin.NewGRPC(); err != nil {
		return nil, err
	}
	b.hbone, err = origin.NewHBONE(&tls.Config{
		Certificates: []tls.Certificate{*certs["app"]}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.Roots(),
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
	})
	return b, err
}

func split(list string) []string {
	if list == "" {
		return nil
	}
	return strings.Split(list, ",")
}

func (b *bench) close() {
	b.stopAll()
	_ = os.RemoveAll(b.dir)
}

func (b *bench) stopAll() {
	for _, c := range b.running {
		c.Stop()
	}
	b.running = nil
}

// start runs a contender; nil, nil notes that it is missing.
func (b *bench) start(ctx context.Context, name string, s contender.Spec) (*contender.Contender, error) {
	s.Dir, s.CPU = b.dir, b.proxyCPU
	if s.Ports.H1 == 0 {
		if err := s.Ports.Listen(); err != nil {
			return nil, err
		}
	}
	s.Ports.OriginPlain, s.Ports.OriginHBONE, s.Ports.OriginGRPC = b.plain.Port(), b.hbone.Port(), b.calls.Port()
	c, err := contender.Start(ctx, name, s)
	if m, ok := errors.AsType[*contender.Missing](err); ok {
		b.report.Missing[contender.Label(name)] = m.Error()
		return nil, nil
	}
	return c, err
}

// selected are the workloads that the flags ask for, those with the same number
// of routes together: contenders start again when that changes.
func (b *bench) selected() []workload {
	var out []workload
	only := split(b.o.only)
	for _, w := range workloads(b.o.streams) {
		use := len(only) == 0 && (!b.o.quick || w.quick)
		for _, n := range only {
			use = use || strings.Contains(w.name, n)
		}
		if use {
			out = append(out, w)
		}
	}
	slices.SortStableFunc(out, func(a, b workload) int { return a.routes - b.routes })
	return out
}

// users are the contenders that can do w.
func (b *bench) users(w *workload) []string {
	var out []string
	for _, n := range b.names {
		if contender.Supports(n, w.shape) && (w.routes <= 1 || contender.SupportsRoutes(n)) {
			out = append(out, n)
		}
	}
	return out
}

// measureAll runs the workloads, as long as the budget allows.
func (b *bench) measureAll(ctx context.Context) error {
	todo := b.selected()
	runs := 0.0
	for i := range todo {
		runs += float64(len(b.users(&todo[i]))) * (float64(b.o.rounds) + warmUp) * todo[i].length()
	}
	if b.o.run == 0 {
		b.o.run = 2 * time.Second
		if !b.deadline.IsZero() && runs > 0 {
			// A tenth is for opening connections and starting processes.
			b.o.run = min(b.o.run, max(200*time.Millisecond, time.Duration(0.9*float64(time.Until(b.deadline))/runs)))
		}
	}
	routes := 0
	for i := range todo {
		w := &todo[i]
		if !b.deadline.IsZero() && time.Now().After(b.deadline) {
			b.report.Skipped[w.name] = "no time left"
			continue
		}
		if w.routes != routes {
			if err := b.restart(ctx, w.routes); err != nil {
				return err
			}
			routes = w.routes
		}
		slog.Info("workload", "name", w.name, "number", i+1, "of", len(todo), "run", b.o.run.Round(time.Millisecond))
		if err := b.measure(ctx, w); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
	}
	return nil
}

// restart replaces the contenders by ones with that many routes.
func (b *bench) restart(ctx context.Context, routes int) error {
	b.stopAll()
	for _, name := range b.names {
		if routes > 1 && !contender.SupportsRoutes(name) {
			continue
		}
		c, err := b.start(ctx, name, contender.Spec{Routes: routes})
		if err != nil {
			return err
		}
		if c != nil {
			b.running = append(b.running, c)
		}
	}
	if len(b.running) == 0 {
		return errors.New("no contender is installed")
	}
	return nil
}

// warmUp is the length of the run that doesn't count, in runs.
const warmUp = 0.2

// measure runs a workload: a short run of each contender that doesn't count,
// then rounds in turn.
func (b *bench) measure(ctx context.Context, w *workload) error {
	var users []*contender.Contender
	var gens []*load.Generator
	for _, c := range b.running {
		if !c.Supports(w.shape) {
			continue
		}
		x, err := b.open(ctx, w, c)
		if err != nil {
			return fmt.Errorf("%s: %w", c.Name, err)
		}
		g := load.New(x, w.rate)
		defer g.Close()
		users, gens = append(users, c), append(gens, g)
	}
	for round := range b.o.rounds + 1 {
		for i, c := range users {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			d := time.Duration(float64(b.o.run) * w.length())
			if round == 0 {
				d = time.Duration(warmUp * float64(d))
			}
			b.profile(ctx, w, c, round)
			mallocs := b.mallocs(ctx, w, c, round)
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
			mallocs(res.Requests)
			if round > 0 {
				b.record(w, c, round, &res, after.CPU-before.CPU, after.RSS)
			}
			c.TrimLogs()
		}
	}
	return nil
}

// allocations are the workloads whose allocations a request are figures.
var allocations = map[string]string{"hbone-plain closed": report.AllocsHBONE, "h1-h1 closed": report.AllocsH1}

// mallocs returns what records the allocations until then.
func (b *bench) mallocs(ctx context.Context, w *workload, c *contender.Contender, round int) func(requests uint64) {
	name := allocations[w.name]
	if name == "" || round == 0 || !c.Profiles() {
		return func(uint64) {}
	}
	first, err1 := c.Runtime(ctx)
	before, err2 := c.Runtime(ctx) // to ask costs some, too
	return func(requests uint64) {
		after, err3 := c.Runtime(ctx)
		if err := errors.Join(err1, err2, err3); err != nil {
			b.report.Skipped[name+" of "+c.Name] = err.Error()
			return
		}
		b.figure(name, c, round, max(0, float64(after.Mallocs-before.Mallocs)-float64(before.Mallocs-first.Mallocs))/float64(max(requests, 1)))
	}
}

// profile takes a profile in the last round, if it was asked for.
func (b *bench) profile(ctx context.Context, w *workload, c *contender.Contender, round int) {
	if b.o.profile == "" || round < b.o.rounds || !c.Profiles() {
		return
	}
	file := b.o.profile + "." + strings.NewReplacer(" ", "-", "/", "-", "×", "x").Replace(w.name+" "+c.Name)
	go func() {
		if err := c.Profile(ctx, max(b.o.run*4/5, time.Second), file); err != nil {
			fmt.Fprintln(os.Stderr, "profile:", err)
		}
	}()
}

func (b *bench) record(w *workload, c *contender.Contender, round int, res *load.Result, cpu time.Duration, rss uint64) {
	us := func(q float64) float64 { return float64(res.Latency.ValueAtQuantile(q)) / 1e3 }
	s := report.Sample{
		Workload: w.name, Contender: c.Name, Round: round,
		CPU:  cpu.Seconds() * 1e6 / float64(max(res.Requests, 1)),
		Rate: float64(res.Requests) / res.Elapsed.Seconds(), RSS: rss,
		P50: us(50), P99: us(99), P999: us(99.9), Requests: res.Requests, Errors: res.Errors,
	}
	for _, q := range report.Quantiles {
		s.Latency = append(s.Latency, us(q))
	}
	b.report.Samples = append(b.report.Samples, s)
}

func (b *bench) figure(name string, c *contender.Contender, round int, value float64) {
	b.report.Figures = append(b.report.Figures, report.Figure{Name: name, Contender: c.Name, Round: round, Unit: report.Units[name], Value: value})
}
