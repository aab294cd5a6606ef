package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fairlead-mesh/fairlead/bench/contender"
	"github.com/fairlead-mesh/fairlead/bench/load"
	"github.com/fairlead-mesh/fairlead/bench/origin"
	"github.com/fairlead-mesh/fairlead/bench/report"
)

// How many of what is idle, and streams of a tunnel: as many as ztunnel allows.
const (
	idleTunnels, idleStreams, idleH1 = 9000, 10000, 9000
	streamsPerTunnel                 = 200
	// startRounds is how often the start is measured.
	startRounds = 3
)

// scale measures what is no workload, each on a process of its own. One figure
// that can't be taken is noted and does not stop the others.
func (b *bench) scale(ctx context.Context) error {
	deadline := time.Now().Add(time.Hour)
	if !b.deadline.IsZero() { // the rest of the budget is for workloads
		deadline = time.Now().Add(time.Until(b.deadline) * 55 / 100)
	}
	if picked(b.o.figures, handshakes) {
		limited, cancel := context.WithTimeout(ctx, 2*time.Minute)
		err := b.handshakes(limited)
		cancel()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			b.report.Skipped[handshakes] = err.Error()
		}
	}
	for _, name := range b.names {
		if contender.Label(name) == "fairlead+istio" {
			continue // it differs by a filter only
		}
		yardstick := name == "naive" || name == "floor" // of requests, not of these
		for _, part := range []struct {
			what    string
			applies bool
			run     func(context.Context, string) error
		}{
			{"start", true, b.starts},
			{"idle tunnels", !yardstick && tlsShape(name) != "", b.idleTunnels},
			{"idle CONNECT streams", !yardstick && contender.Supports(name, contender.HBONEPlain), b.idleStreams},
			{"idle h1 connections", !yardstick && contender.Supports(name, contender.H1H1), b.idleH1},
			{"cores", contender.SupportsADS(name), b.cores},
			{"collections", contender.SupportsProfiles(name), b.collections},
			{"start by ADS", contender.SupportsADS(name), b.startByADS},
			{"clusters by ADS", contender.SupportsADS(name), b.clusters},
			{"route push", contender.SupportsADS(name), b.routePushes},
			{churn, contender.SupportsADS(name) && strings.Contains(b.o.figures, churn), b.churn}, // only if asked for
		} {
			if !picked(b.o.figures, part.what) || !part.applies || b.report.Missing[contender.Label(name)] != "" {
				continue
			}
			if time.Now().After(deadline) {
				b.report.Skipped[part.what+" of "+contender.Label(name)] = "no time left"
				continue
			}
			begin := time.Now()
			// Whatever hangs ends with this and is noted.
			limited, cancel := context.WithTimeout(ctx, 60*time.Second)
			err := part.run(limited, name)
			cancel()
			if err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				b.report.Skipped[part.what+" of "+contender.Label(name)] = err.Error()
			}
			slog.Info("scale", "figure", part.what, "contender", name, "took", time.Since(begin).Round(time.Millisecond))
		}
	}
	return nil
}

// picked reports whether name contains one of the words of list, or list is
// empty.
func picked(list, name string) bool {
	return list == "" || slices.ContainsFunc(split(list), func(word string) bool { return strings.Contains(name, word) })
}

// tlsShape is the shape of a contender that ends TLS: tunnels, or HTTP/2 where
// there are none.
func tlsShape(name string) contender.Shape {
	for _, s := range []contender.Shape{contender.HBONEPlain, contender.H2TLSH1} {
		if contender.Supports(name, s) {
			return s
		}
	}
	return ""
}

func (b *bench) sized(n int) int { return max(1, int(float64(n)*b.o.size)) }

// fresh runs f on a new process.
func (b *bench) fresh(ctx context.Context, name string, s contender.Spec, f func(*contender.Contender) error) error {
	c, err := b.start(ctx, name, s)
	if c == nil || err != nil {
		return err
	}
	defer c.Stop()
	return f(c)
}

// calm is fresh for figures of memory: f runs when the process is done with its
// start, and what tidies up behind that does not take away what f has warmed up.
func (b *bench) calm(ctx context.Context, name string, f func(*contender.Contender) error) error {
	return b.fresh(ctx, name, contender.Spec{}, func(c *contender.Contender) error {
		if _, err := settled(ctx, c, readyFor); err != nil {
			return err
		}
		return f(c)
	})
}

// starts measures the time until ready, and the memory then.
func (b *bench) starts(ctx context.Context, name string) error {
	for round := 1; round <= startRounds; round++ {
		for _, v := range []struct {
			routes    int
			time, rss string
		}{
			{1, report.ReadyTime, report.ReadyRSS}, {1000, report.Routes1000Time, report.Routes1000RSS}, {5000, report.Routes5000Time, report.Routes5000RSS},
		} {
			if v.routes > 1 && !contender.SupportsRoutes(name) {
				continue
			}
			err := b.fresh(ctx, name, contender.Spec{Routes: v.routes}, func(c *contender.Contender) error {
				rss, err := settled(ctx, c, readyFor)
				b.figure(v.time, c, round, c.StartTime.Seconds())
				b.figure(v.rss, c, round, rss/(1<<20))
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// How long nothing happens before memory is read.
const readyFor, idleFor = 400 * time.Millisecond, 1500 * time.Millisecond

// settled returns the memory, in bytes, once the process had time to tidy up:
// idle is what it has when nothing has happened for a while, which several of its
// timers may wait for.
func settled(ctx context.Context, c *contender.Contender, idle time.Duration) (float64, error) {
	if err := sleep(ctx, idle); err != nil {
		return 0, err
	}
	u, err := c.Usage()
	return float64(u.RSS), err
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// each records how much memory one of n needs beyond before.
func (b *bench) each(ctx context.Context, figure string, c *contender.Contender, before float64, n int) error {
	after, err := settled(ctx, c, idleFor)
	if err == nil {
		b.figure(figure, c, 1, (after-before)/float64(n)/(1<<10))
	}
	if err == nil && b.o.profile != "" && c.Profiles() {
		err = c.HeapProfile(ctx, b.o.profile+"."+strings.ReplaceAll(figure+" "+c.Name, " ", "-"))
	}
	return err
}

func (b *bench) idleTunnels(ctx context.Context, name string) error {
	return b.calm(ctx, name, func(c *contender.Contender) error {
		var first, all tunnels
		defer first.close()
		defer all.close()
		if err := first.open(ctx, warmConnections, address(c, tlsShape(name)), same(b.client)); err != nil {
			return err
		}
		before, err := settled(ctx, c, idleFor)
		if err != nil {
			return err
		}
		if err := all.open(ctx, b.sized(idleTunnels), address(c, tlsShape(name)), same(b.client)); err != nil {
			return err
		}
		if err := b.each(ctx, report.IdleTunnel, c, before, len(all.list)); err != nil {
			return err
		}
		return b.idleCPU(ctx, c)
	})
}

// idleCPU records what a process uses that has nothing to do.
func (b *bench) idleCPU(ctx context.Context, c *contender.Contender) error {
	const long = 2 * time.Second
	before, err := c.Usage()
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := sleep(ctx, long); err != nil {
		return err
	}
	after, err := c.Usage()
	b.figure(report.IdleCPU, c, 1, 100*(after.CPU-before.CPU).Seconds()/time.Since(begin).Seconds())
	return err
}

// tunnels are opened by a few goroutines: a handshake waits for the other side.
type tunnels struct {
	mu   sync.Mutex
	list []*load.Tunnel
}

// Each has the configuration that config gives for its number.
func (t *tunnels) open(ctx context.Context, n int, addr string, config func(i int) *tls.Config) error {
	const workers = 4
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			for k := i; k < n && errs[i] == nil; k += workers {
				var one *load.Tunnel
				if one, errs[i] = load.OpenTunnel(ctx, addr, config(k)); errs[i] == nil {
					t.mu.Lock()
					t.list = append(t.list, one)
					t.mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (t *tunnels) close() {
	for _, one := range t.list {
		one.Close()
	}
}

func address(c *contender.Contender, s contender.Shape) string {
	return fmt.Sprintf("127.0.0.1:%d", c.Ports.Of(s))
}

func (b *bench) idleStreams(ctx context.Context, name string) error {
	return b.calm(ctx, name, func(c *contender.Contender) error {
		n := b.sized(idleStreams)
		var all tunnels
		defer all.close()
		if err := all.open(ctx, (n+streamsPerTunnel-1)/streamsPerTunnel, address(c, contender.HBONEPlain), same(b.client)); err != nil {
			return err
		}
		request := (&payload{size: origin.Size}).h1()
		if err := b.warmStreams(ctx, address(c, contender.HBONEPlain), request); err != nil {
			return err
		}
		before, err := settled(ctx, c, idleFor)
		if err != nil {
			return err
		}
		type stream struct {
			t  *load.Tunnel
			id uint32
		}
		var streams []stream
		for len(streams) < n {
			t := all.list[len(streams)/streamsPerTunnel]
			id, err := t.Connect(b.destination())
			if err != nil {
				return fmt.Errorf("stream %d: %w", len(streams)+1, err)
			}
			streams = append(streams, stream{t, id})
		}
		if err := b.each(ctx, report.IdleStream, c, before, n); err != nil {
			return err
		}
		for i, s := range streams {
			if err := s.t.Request(s.id, request, origin.Size); err != nil {
				return fmt.Errorf("request on stream %d: %w", i+1, err)
			}
		}
		return b.each(ctx, report.IdleStreamUsed, c, before, n)
	})
}

// warmConnections are used before memory is measured, so that what requests touch
// (code, pools) is not taken for that of connections. With 16 some MB of code that
// only collections of garbage need came later, or didn't, from run to run.
const warmConnections = 200

// warmStreams opens streams on a tunnel of their own and uses them.
func (b *bench) warmStreams(ctx context.Context, addr string, request []byte) error {
	t, err := load.OpenTunnel(ctx, addr, b.client)
	if err != nil {
		return err
	}
	defer t.Close()
	for range warmConnections {
		id, err := t.Connect(b.destination())
		if err == nil {
			err = t.Request(id, request, origin.Size)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) idleH1(ctx context.Context, name string) error {
	return b.calm(ctx, name, func(c *contender.Contender) error {
		n := b.sized(idleH1)
		addr, err := netip.ParseAddrPort(address(c, contender.H1H1))
		if err != nil {
			return err
		}
		first, err := load.H1(ctx, load.TCP{Address: addr}, warmConnections, (&payload{size: origin.Size}).h1(), origin.Size)
		if err != nil {
			return err
		}
		defer load.New(first, 0).Close()
		for _, x := range first {
			if err := x.Exchange(); err != nil {
				return err
			}
		}
		before, err := settled(ctx, c, idleFor)
		if err != nil {
			return err
		}
		all, err := load.H1(ctx, load.TCP{Address: addr}, n, (&payload{size: origin.Size}).h1(), origin.Size)
		if err != nil {
			return err
		}
		defer load.New(all, 0).Close()
		if err := b.each(ctx, report.IdleH1, c, before, n); err != nil {
			return err
		}
		for i, x := range all {
			if err := x.Exchange(); err != nil {
				return fmt.Errorf("request on connection %d: %w", i+1, err)
			}
		}
		return b.each(ctx, report.IdleH1Used, c, before, n)
	})
}

// cores measures how many processors one tunnel keeps busy, whose requests take
// much of them: a figure of two processors, which the generator shares.
func (b *bench) cores(ctx context.Context, name string) error {
	w := &workload{name: "cores", shape: contender.HBONEPlain, payload: payload{size: origin.Size, long: true}, tunnels: 1, streams: 100, routes: 1}
	return b.fresh(ctx, name, contender.Spec{Cores: 2, Expensive: true}, func(c *contender.Contender) error {
		x, err := b.open(ctx, w, c)
		if err != nil {
			return err
		}
		g := load.New(x, 0)
		defer g.Close()
		for round := range startRounds + 1 {
			before, err := c.Usage()
			if err != nil {
				return err
			}
			res := g.Run(time.Duration(float64(time.Second) * min(1, b.o.size)))
			after, err := c.Usage()
			if err != nil {
				return err
			}
			if res.Errors > 0 {
				return fmt.Errorf("%d errors, one of them: %s", res.Errors, res.FirstError)
			}
			if round > 0 {
				b.figure(report.Cores, c, round, (after.CPU-before.CPU).Seconds()/res.Elapsed.Seconds())
			}
		}
		return nil
	})
}
