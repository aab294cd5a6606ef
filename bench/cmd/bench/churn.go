package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	routev3pb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/fairlead-mesh/fairlead/internal/xdstest"

	"github.com/fairlead-mesh/fairlead/bench/contender"
	"github.com/fairlead-mesh/fairlead/bench/load"
	"github.com/fairlead-mesh/fairlead/bench/origin"
	"github.com/fairlead-mesh/fairlead/bench/report"
)

// churn is the name of this part of -scale.
const churn = "churn"

const (
	churnRounds = 5
	churnRun    = 2 * time.Second
	churnEvery  = 50 * time.Millisecond // a change
	churnKinds  = 10                    // one of so many is of a cluster, the others are of endpoints
)

// churn measures, among many clusters, what requests feel of clusters and
// endpoints that change one after the other, what processor time a change takes
// beside theirs, and how long until it is acknowledged. Rounds with changes
// alternate with such without.
func (b *bench) churn(ctx context.Context, name string) error {
	n := b.sized(manyClusters)
	return b.withADS(ctx, name, func(p *controlPlane) error {
		return errors.Join(p.forward(service(0)), p.setClusters(n, b.plain.Port()))
	}, func(p *controlPlane, c *contender.Contender) error {
		addr, err := netip.ParseAddrPort(address(c, contender.H1H1))
		if err != nil {
			return err
		}
		x, err := load.H1(ctx, load.TCP{Address: addr}, pushConns, (&payload{size: origin.Size}).h1(), origin.Size)
		if err != nil {
			return err
		}
		g := load.New(x, pushRate)
		defer g.Close()
		run := func(d time.Duration) (p99, cpu float64, err error) {
			before, err := c.Usage()
			if err != nil {
				return 0, 0, err
			}
			res := g.Run(d)
			after, err := c.Usage()
			if res.Errors > 0 {
				err = errors.Join(err, fmt.Errorf("%d errors, one of them: %s", res.Errors, res.FirstError))
			}
			return float64(res.Latency.ValueAtQuantile(99)), (after.CPU - before.CPU).Seconds() * 1e3, err
		}
		if _, _, err := run(time.Second); err != nil { // warm
			return err
		}
		var took []float64
		for round := 1; round <= churnRounds; round++ {
			quiet, quietCPU, err := run(churnRun)
			if err != nil {
				return err
			}
			stop := p.change(n, b.plain.Port(), uint32(round))
			busy, busyCPU, err := run(churnRun)
			ms, stopErr := stop()
			if err := errors.Join(err, stopErr); err != nil {
				return err
			}
			took = append(took, ms...)
			b.figure(report.ChurnP99, c, round, busy/quiet)
			b.figure(report.ChurnQuiet, c, round, quiet/1e6)
			b.figure(report.ChurnCPU, c, round, (busyCPU-quietCPU)/float64(max(len(ms), 1)))
		}
		slices.Sort(took)
		b.figure(report.ChurnDelta, c, 1, took[(len(took)-1)*99/100])
		return nil
	})
}

// forward sends everything to a cluster.
func (p *controlPlane) forward(cluster string) error {
	return p.Set(xdstest.Route, "routes", &routev3pb.RouteConfiguration{Name: "routes", VirtualHosts: []*routev3pb.VirtualHost{{
		Name: "all", Domains: []string{"*"}, Routes: []*routev3pb.Route{{
			Match:  &routev3pb.RouteMatch{PathSpecifier: &routev3pb.RouteMatch_Prefix{Prefix: "/"}},
			Action: &routev3pb.Route_Route{Route: &routev3pb.RouteAction{ClusterSpecifier: &routev3pb.RouteAction_Cluster{Cluster: cluster}}},
		}},
	}}})
}

// change gives one cluster after the other what belongs to a round, until stop is
// called, which returns the milliseconds until each change was acknowledged.
func (p *controlPlane) change(n, port int, round uint32) (stop func() ([]float64, error)) {
	over, done := make(chan struct{}), make(chan struct{})
	var took []float64
	var failed error
	go func() {
		defer close(done)
		tick := time.NewTicker(churnEvery)
		defer tick.Stop()
		for i := 0; failed == nil; i++ {
			select {
			case <-over:
				return
			case <-tick.C:
			}
			name, kind := service(i%n), xdstest.Endpoints
			acks := acknowledged(p.Requests(), kind)
			set := func() error { return p.Set(kind, name, assignment(name, port, 1+round)) }
			if i%churnKinds == churnKinds-1 {
				kind = xdstest.Cluster
				acks = acknowledged(p.Requests(), kind)
				set = func() error { // with its endpoints, for which Envoy waits before it answers
					return errors.Join(p.Set(kind, name, cluster(name, time.Duration(5+round)*time.Second)), p.Set(xdstest.Endpoints, name, assignment(name, port, 1+round)))
				}
			}
			begin := time.Now()
			if failed = set(); failed != nil {
				return
			}
			if !p.Await(5*time.Second, func(all []xdstest.Request) bool { return acknowledged(all, kind) > acks }) {
				failed = fmt.Errorf("no answer to the change of %s", name)
				return
			}
			took = append(took, time.Since(begin).Seconds()*1e3)
		}
	}()
	return func() ([]float64, error) {
		close(over)
		<-done
		return took, failed
	}
}

func acknowledged(all []xdstest.Request, typeURL string) (n int) {
	for _, r := range all {
		if r.IsACK() && r.GetTypeUrl() == typeURL {
			n++
		}
	}
	return n
}
