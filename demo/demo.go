// Package demo is a mesh on one machine that proves itself: a control plane, a
// waypoint, an egress gateway, ztunnels, two versions of an application and an
// external service, and a table of what a client and the applications saw.
//
// Everything runs in one process, so that the demo needs neither a second
// program nor privileges and can't leave anything behind. The parts are the
// real ones nevertheless, as the commands proxy and ztunnel run them, and they
// talk over sockets only: every request crosses the loopback device inside
// HBONE tunnels, and waypoint and egress gateway have nothing but a bootstrap
// and what the control plane sends by delta ADS. The control plane is
// go-control-plane's snapshot cache and server, in plaintext as istiod's port
// 15010.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"
)

// Options say how a demo runs. Out must be set.
type Options struct {
	// Out gets the table.
	Out io.Writer
	// Keep leaves the mesh up after the table, until the context ends, and
	// prints commands to try.
	Keep bool
	// Logger gets what the parts log, nil discards.
	Logger *slog.Logger

	// edit changes a configuration before it is filled in, for tests.
	edit func(file, text string) string
}

// Row is one line of the table.
type Row struct {
	Name, Expected, Seen string
	OK                   bool
	Took                 time.Duration
}

// Run starts the mesh, makes every check and prints the table. It is nil if all
// rows are as expected, and an error that names those that aren't, or the part
// that did not start. Nothing is left running.
func Run(ctx context.Context, o Options) error {
	_, err := run(ctx, o)
	return err
}

func run(ctx context.Context, o Options) (rows []Row, err error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	begin := time.Now()
	m, err := start(ctx, &o)
	if err != nil {
		return nil, fmt.Errorf("demo: %w", err)
	}
	defer func() {
		if e := m.stop(); e != nil {
			err = errors.Join(err, fmt.Errorf("demo: %w", e))
		}
	}()
	_, _ = fmt.Fprintf(o.Out, "%s\nstarted in %s\n\n", topology, round(time.Since(begin)))
	var failed []string
	printHead(o.Out)
	for i := range checks {
		r := checks[i].check(ctx, m)
		if ctx.Err() != nil {
			return rows, fmt.Errorf("demo: interrupted: %w", context.Cause(ctx))
		}
		printRow(o.Out, r)
		if rows = append(rows, r); !r.OK {
			failed = append(failed, r.Name)
		}
	}
	_, _ = fmt.Fprintf(o.Out, "\n%d of %d as expected, %s\n", len(rows)-len(failed), len(rows), round(time.Since(begin)))
	if o.Keep {
		m.printTries(o.Out)
		select {
		case <-ctx.Done():
		case err := <-m.ended:
			return rows, fmt.Errorf("demo: %w", err)
		}
	}
	if len(failed) > 0 {
		return rows, fmt.Errorf("demo: %d of %d rows are not as expected: %s", len(failed), len(rows), strings.Join(failed, ", "))
	}
	return rows, nil
}

const topology = `client ─ ztunnel ═╦═ waypoint ═╦═ ztunnel ─ reviews v1      ═ HBONE: mutual TLS 1.3, SPIFFE identities
                  ║            ╚═ ztunnel ─ reviews v2      ─ plaintext, between an application and its ztunnel
                  ╚═ egress gateway ── TLS ── api.bank.example`

const format = "%-27s %-44s %-52s %-4s %8s\n"

func printHead(w io.Writer) {
	_, _ = fmt.Fprintf(w, format, "WHAT", "EXPECTED", "SEEN", "", "TIME")
}

func printRow(w io.Writer, r Row) {
	mark := "ok"
	if !r.OK {
		mark = "FAIL"
	}
	_, _ = fmt.Fprintf(w, format, r.Name, r.Expected, r.Seen, mark, round(r.Took))
}

func round(d time.Duration) time.Duration {
	if d > time.Second {
		return d.Round(10 * time.Millisecond)
	}
	return d.Round(100 * time.Microsecond)
}
