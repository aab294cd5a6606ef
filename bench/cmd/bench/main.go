// Command bench runs workloads against proxies in turn (A B A B …) and prints
// their processor time a request as ratios. See the README beside go.mod.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"time"

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
	only, contenders, json, profile string
	rounds, streams                 int
	run                             time.Duration
	hold                            time.Duration
	template                        string
	list                            bool
}

func run() error {
	var o options
	flag.StringVar(&o.only, "only", "", "workloads whose name contains one of these, separated by commas")
	flag.StringVar(&o.contenders, "contenders", "fairlead,fairlead+istio,envoy,naive", "contenders in their order; a path is another Fairlead binary")
	flag.StringVar(&o.json, "json", "", "write every sample to this file")
	flag.StringVar(&o.profile, "profile", "", "write a CPU profile of Fairlead during the last round of each workload to FILE.WORKLOAD")
	flag.IntVar(&o.rounds, "rounds", 3, "interleaved rounds")
	flag.IntVar(&o.streams, "streams", 64, "streams at once")
	flag.DurationVar(&o.run, "run", 2*time.Second, "length of one run")
	flag.DurationVar(&o.hold, "hold", 0, "keep the contenders running that long at the end")
	flag.StringVar(&o.template, "template", "testdata/waypoint.yaml", "bootstrap template")
	flag.BoolVar(&o.list, "list", false, "list the workloads")
	flag.Parse()
	if o.list {
		for _, w := range workloads(&o) {
			fmt.Fprintln(os.Stdout, w.name)
		}
		return nil
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	b, err := newBench(&o)
	if err != nil {
		return err
	}
	defer b.close()
	for _, name := range strings.Split(o.contenders, ",") {
		if err := b.start(ctx, name); err != nil {
			return err
		}
	}
	if len(b.contenders) == 0 {
		return errors.New("no contender is installed")
	}
	failed := false
	for _, w := range b.selected() {
		if err := b.measure(ctx, w); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
	}
	if err := b.report.Print(os.Stdout, bars); err != nil {
		return err
	}
	if o.json != "" {
		f, err := os.Create(o.json)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := b.report.JSON(f); err != nil {
			return err
		}
	}
	for _, r := range b.report.Rows() {
		failed = failed || r.Errors > 0
	}
	select {
	case <-time.After(o.hold):
	case <-ctx.Done():
	}
	if failed {
		return errors.New("there were errors: the figures are void")
	}
	return nil
}

// bars are what the project aims at, as ratios to Envoy.
var bars = []report.Bar{
	{Workload: "hbone-hbone closed", Contender: "fairlead", Max: 0.35},
	{Workload: "hbone-plain closed", Contender: "fairlead", Max: 0.5},
	{Workload: "h1-h1 closed", Contender: "fairlead", Max: 0.5},
	{Workload: "hbone-hbone paced 5k/s", Contender: "fairlead", Max: 0.8},
	{Workload: "hbone-plain paced 5k/s", Contender: "fairlead", Max: 0.65},
	{Workload: "h1-h1 paced 5k/s", Contender: "fairlead", Max: 0.65},
}
