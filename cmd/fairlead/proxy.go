package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/admin"
	"github.com/fairlead-mesh/fairlead/internal/footprint"
	"github.com/fairlead-mesh/fairlead/proxy"
	"github.com/fairlead-mesh/fairlead/proxy/agent"
)

// proxyCommand runs the proxy: from a bootstrap file (-c), or as istiod's pod
// templates start it (waypoint|router with pilot-agent's arguments).
func proxyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "proxy [-c FILE [--log-level LEVEL] [--drain-time DURATION] | waypoint|router ARGS…]",
		Short: "Run the proxy from an Envoy bootstrap, or with pilot-agent's arguments",
		Long: "With -c, the proxy runs an Envoy v3 bootstrap file (YAML or JSON).\n" +
			"With waypoint or router as first argument it takes the arguments and environment of pilot-agent\n" +
			"and gets certificate and configuration from istiod.",
		// pilot-agent's flags are parsed by package agent.
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, a := range args {
				if a == "-h" || a == "--help" {
					return cmd.Help()
				}
			}
			if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
				return runAgent(cmd, args)
			}
			return runBootstrap(cmd, args)
		},
	}
}

func runAgent(cmd *cobra.Command, args []string) error {
	cfg, err := agent.Parse(agent.Input{Args: args, Env: os.Environ()})
	if err != nil {
		return err
	}
	level := &slog.LevelVar{}
	level.Set(cfg.Log.Level)
	p, err := proxy.FromAgent(cfg, proxy.ProcessOptions{
		Registry: builtin.Registry(), Logger: logger(level, cfg.Log.JSON), Events: logger(eventLevel{level, cfg.Log.Events}, cfg.Log.JSON), Level: level, Version: version,
		OnReady: releaseSoon,
	})
	if err != nil {
		return err
	}
	return p.Run(cmd.Context())
}

// eventLevel is that of events in a pod, which says little else by default:
// what log_output_level says, or more if everything is to say more.
type eventLevel struct {
	process *slog.LevelVar
	own     slog.Level
}

// Level implements slog.Leveler.
func (l eventLevel) Level() slog.Level { return min(l.process.Level(), l.own) }

// releaseSoon gives back the memory that only starting took, once what started
// has come to rest, and later what a burst leaves behind.
func releaseSoon() {
	time.AfterFunc(100*time.Millisecond, func() {
		footprint.Release()
		footprint.Keep(nil)
	})
}

func logger(level slog.Leveler, json bool) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	if json {
		return slog.New(slog.NewJSONHandler(os.Stderr, o))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, o))
}

// bootstrapFlags are the flags of the bootstrap mode.
type bootstrapFlags struct {
	file  string
	level slog.Level
	drain time.Duration
	json  bool
}

func parseBootstrapFlags(args []string) (*bootstrapFlags, error) {
	f := &bootstrapFlags{level: slog.LevelInfo, drain: 5 * time.Second}
	fs := cobraFlags("proxy")
	var level string
	fs.StringVarP(&f.file, "config", "c", "", "Envoy v3 bootstrap file, YAML or JSON")
	fs.StringVarP(&level, "log-level", "l", "info", "trace, debug, info, warning, error, critical or off")
	fs.DurationVar(&f.drain, "drain-time", f.drain, "how long connections may go on after SIGTERM")
	fs.BoolVar(&f.json, "log-json", false, "log as JSON")
	if err := fs.Parse(args); err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	var ok bool
	if f.level, ok = admin.ParseLevel(level); !ok {
		return nil, fmt.Errorf("proxy: --log-level: unknown level %q", level)
	}
	if f.file == "" {
		return nil, errors.New("proxy: give a bootstrap file with -c, or the role waypoint or router")
	}
	return f, nil
}

func runBootstrap(cmd *cobra.Command, args []string) error {
	f, err := parseBootstrapFlags(args)
	if err != nil {
		return err
	}
	doc, err := proxy.ReadFile(f.file)
	if err != nil {
		return err
	}
	level := &slog.LevelVar{}
	level.Set(f.level)
	log := logger(level, f.json)
	modules, warnings := agent.Modules(os.Environ())
	for _, w := range warnings {
		log.Warn("environment", "note", w)
	}
	p, err := proxy.FromBootstrap(doc, proxy.ProcessOptions{
		Registry: builtin.Registry(), Logger: log, Level: level, Version: version, DrainTime: f.drain, OnReady: releaseSoon, Modules: modules,
	})
	if err != nil {
		return inFile(f.file, err)
	}
	return p.Run(cmd.Context())
}
