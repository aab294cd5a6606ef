// Command bench runs workloads against proxies in turn (A B A B …) and prints
// their processor time a request as ratios, and what they need when they are
// idle or much configured. See the README beside go.mod.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead-mesh/fairlead/bench/report"
)

func main() {
	if err := run(); err != nil {
		slog.Error("bench", "error", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	only, contenders, baseline     string
	figures                        string
	json, markdown, plots, profile string
	rounds, streams                int
	run, hold, budget              time.Duration
	quick, list, scale, load       bool
	size                           float64
}

func parse() *options {
	o := &options{}
	flag.StringVar(&o.only, "only", "", "workloads whose name contains one of these, separated by commas")
	flag.StringVar(&o.contenders, "contenders", "fairlead,fairlead+istio,envoy,haproxy,nginx,floor,ztunnel,naive", "contenders in their order; NAME=PATH, or a path, is another Fairlead binary")
	flag.StringVar(&o.baseline, "baseline", "envoy", "contender that ratios are to")
	flag.StringVar(&o.json, "json", "", "write every sample to this file")
	flag.StringVar(&o.markdown, "markdown", "", "write the tables to this file")
	flag.StringVar(&o.plots, "plots", "", "write SVG files to this directory")
	flag.StringVar(&o.profile, "profile", "", "write a CPU profile of Fairlead during the last round of each workload to FILE.WORKLOAD-CONTENDER, and a profile of its heap to FILE.FIGURE-CONTENDER where memory is a figure")
	flag.IntVar(&o.rounds, "rounds", 3, "interleaved rounds")
	flag.IntVar(&o.streams, "streams", 64, "streams at once, where the workload doesn't say")
	flag.DurationVar(&o.run, "run", 0, "length of one run; 0: what -budget allows, at most 2s")
	flag.DurationVar(&o.budget, "budget", 0, "time for everything; what doesn't fit is not measured")
	flag.DurationVar(&o.hold, "hold", 0, "keep the contenders running that long at the end")
	flag.BoolVar(&o.quick, "quick", false, "the six workloads of make bench-quick")
	flag.BoolVar(&o.load, "load", true, "measure workloads")
	flag.BoolVar(&o.scale, "scale", false, "measure idle connections, handshakes, configuration and start")
	flag.StringVar(&o.figures, "figures", "", "parts of -scale whose name contains one of these, separated by commas: start, idle tunnels, clusters …")
	flag.Float64Var(&o.size, "size", 1, "multiplies the numbers of connections and clusters of -scale; figures of another size than 1 are of no use")
	flag.BoolVar(&o.list, "list", false, "list the workloads")
	flag.Parse()
	return o
}

func run() error {
	o := parse()
	if o.list {
		for _, w := range workloads(o.streams) {
			fmt.Fprintln(os.Stdout, w.name)
		}
		return nil
	}
	descriptors(20000)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	b, err := newBench(o)
	if err != nil {
		return err
	}
	defer b.close()
	if o.scale {
		if err := b.scale(ctx); err != nil {
			return err
		}
	}
	if o.load {
		if err := b.measureAll(ctx); err != nil {
			return err
		}
	}
	if err := b.write(); err != nil {
		return err
	}
	hold := time.NewTimer(o.hold)
	defer hold.Stop()
	select {
	case <-hold.C:
	case <-ctx.Done():
	}
	return nil
}

// write prints the report and stores the files that were asked for.
func (b *bench) write() error {
	bars := report.Bars()
	if b.o.quick || b.o.only != "" || !b.o.scale {
		bars = nil
		for _, v := range b.report.Judge(report.Bars()) {
			if v.State != "not measured" {
				bars = append(bars, v.Bar)
			}
		}
	}
	if err := b.report.Print(os.Stdout, bars); err != nil {
		return err
	}
	var errs []error
	if b.o.json != "" {
		errs = append(errs, store(b.o.json, func(w io.Writer) error { return b.report.JSON(w, bars) }))
	}
	if b.o.markdown != "" {
		errs = append(errs, store(b.o.markdown, func(w io.Writer) error { return b.report.Markdown(w, bars) }))
	}
	if b.o.plots != "" {
		errs = append(errs, b.report.Plots(b.o.plots))
	}
	return errors.Join(errs...)
}

func store(file string, f func(io.Writer) error) error {
	w, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(f(w), w.Close())
}
