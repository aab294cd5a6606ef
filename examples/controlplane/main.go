// Command controlplane is a delta ADS server for the examples: it serves the
// resources of a YAML file and pushes what changes when the file does.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/xdstest"
)

func main() {
	addr := flag.String("listen", "127.0.0.1:18000", "address of the ADS server")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: controlplane [-listen ADDRESS] FILE")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *addr, flag.Arg(0), 500*time.Millisecond); err != nil {
		fmt.Fprintln(os.Stderr, "controlplane: "+err.Error())
		os.Exit(1) //nolint:gocritic // stop has nothing to do any more
	}
}

// run serves file until ctx ends, reading it again every interval. A file that
// can't be read is an error at the start, and later a warning.
func run(ctx context.Context, addr, file string, interval time.Duration) error {
	doc, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	rs, err := xdstest.Load(doc, nil)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	s, err := xdstest.Start(xdstest.Options{Addr: addr})
	if err != nil {
		return err
	}
	defer s.Close()
	s.Replace(rs)
	slog.Info("serving", "address", s.Addr(), "file", file, "resources", len(rs))
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		next, err := os.ReadFile(file)
		if err != nil || bytes.Equal(next, doc) {
			continue
		}
		doc = next
		if rs, err = xdstest.Load(doc, nil); err != nil {
			slog.Warn("the file is not usable; serving what was read before", "file", file, "error", err)
			continue
		}
		s.Replace(rs)
		slog.Info("pushed", "resources", len(rs))
	}
}
