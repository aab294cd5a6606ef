package main

import (
	"context"
	"fmt"
	"time"

	"github.com/fairlead-mesh/fairlead/bench/contender"
	"github.com/fairlead-mesh/fairlead/bench/load"
	"github.com/fairlead-mesh/fairlead/bench/origin"
	"github.com/fairlead-mesh/fairlead/bench/report"
)

const (
	gcRate = 20_000 // requests a second
	gcRun  = 10 * time.Second
)

// collections counts what collecting garbage costs at a steady rate: how often it
// happens, and for how long everything stands still.
func (b *bench) collections(ctx context.Context, name string) error {
	w := &workload{name: "collections", shape: contender.HBONEPlain, payload: payload{size: origin.Size}, tunnels: 4, streams: 64, rate: gcRate}
	return b.fresh(ctx, name, contender.Spec{}, func(c *contender.Contender) error {
		x, err := b.open(ctx, w, c)
		if err != nil {
			return err
		}
		g := load.New(x, w.rate)
		defer g.Close()
		if res := g.Run(time.Second); res.Errors > 0 {
			return fmt.Errorf("%d errors, one of them: %s", res.Errors, res.FirstError)
		}
		before, err := c.Runtime(ctx)
		if err != nil {
			return err
		}
		res := g.Run(time.Duration(float64(gcRun) * min(1, b.o.size)))
		if res.Errors > 0 {
			return fmt.Errorf("%d errors, one of them: %s", res.Errors, res.FirstError)
		}
		after, err := c.Runtime(ctx)
		if err != nil {
			return err
		}
		tens := res.Elapsed.Seconds() / gcRun.Seconds()
		b.figure(report.Collections, c, 1, float64(after.Collections-before.Collections)/tens)
		// Of more than 256 collections the runtime remembers the last ones only.
		b.figure(report.Stopped, c, 1, float64(after.Stopped-before.Stopped)/1e3/tens)
		return nil
	})
}
