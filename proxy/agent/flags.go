package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"

	"github.com/spf13/pflag"
)

// Log is what is logged and how.
type Log struct {
	// Level of the data plane, and by Envoy's component name where it differs.
	Level      slog.Level
	Components map[string]slog.Level
	// Agent is the level of everything that pilot-agent does in a stock proxy,
	// Events that of refusals and findings: the scope "events", else Agent.
	Agent, Events slog.Level
	JSON          bool
}

// Levels beyond slog's own.
const (
	LevelTrace    = slog.Level(-8)
	LevelCritical = slog.Level(12)
	LevelOff      = slog.Level(math.MaxInt32)
)

type flags struct {
	role                                   Role
	domain, serviceCluster, outlierLogPath string
	meshConfig                             string
	concurrency                            int
	log                                    Log
	warnings                               []string
}

// parseFlags reads the arguments after "proxy". Flags that are not known are
// reported and skipped, so that newer templates work.
func parseFlags(args []string) (*flags, error) {
	f := &flags{}
	var proxyLevel, componentLevel, agentLevel string
	fs := pflag.NewFlagSet("proxy", pflag.ContinueOnError)
	fs.ParseErrorsAllowlist.UnknownFlags = true
	fs.SetOutput(discard{})
	fs.StringVar(&f.domain, "domain", "", "DNS domain suffix")
	fs.StringVar(&f.serviceCluster, "serviceCluster", "istio-proxy", "service cluster")
	fs.StringVar(&f.meshConfig, "meshConfig", "/etc/istio/config/mesh", "file with the mesh configuration")
	fs.StringVar(&proxyLevel, "proxyLogLevel", "warning", "log level, with optional component:level entries")
	fs.StringVar(&componentLevel, "proxyComponentLogLevel", "", "component:level entries")
	fs.StringVar(&agentLevel, "log_output_level", "default:info", "scope:level entries")
	fs.BoolVar(&f.log.JSON, "log_as_json", false, "log as JSON")
	fs.StringVar(&f.outlierLogPath, "outlierLogPath", "", "file for ejection events")
	fs.IntVar(&f.concurrency, "concurrency", 0, "number of threads")
	fs.Bool("profiling", true, "pprof on the admin port")
	if err := fs.Parse(args); err != nil {
		return nil, fmt.Errorf("arguments: %w", err)
	}
	f.warnUnknown(fs, args)
	switch rest := fs.Args(); {
	case len(rest) == 0:
		return nil, errors.New("arguments: want a role, waypoint or router (this proxy is no sidecar)")
	case rest[0] != string(Waypoint) && rest[0] != string(Router):
		return nil, fmt.Errorf("arguments: role %q is not supported, want waypoint or router", rest[0])
	default:
		f.role = Role(rest[0])
	}
	if f.concurrency < 0 {
		return nil, fmt.Errorf("arguments: concurrency %d", f.concurrency)
	}
	f.log.Components = map[string]slog.Level{}
	f.log.Level, f.log.Agent = slog.LevelWarn, slog.LevelInfo
	for _, s := range []string{proxyLevel, componentLevel} {
		f.levels(s, &f.log.Level, f.log.Components)
	}
	scopes := map[string]slog.Level{}
	f.levels(agentLevel, &f.log.Agent, scopes)
	for _, name := range []string{"all", "default"} {
		if l, ok := scopes[name]; ok {
			f.log.Agent = l
		}
	}
	f.log.Events = f.log.Agent
	if l, ok := scopes["events"]; ok {
		f.log.Events = l
	}
	return f, nil
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

func (f *flags) warnUnknown(fs *pflag.FlagSet, args []string) {
	for _, a := range args {
		name, ok := strings.CutPrefix(a, "--")
		if name, _, _ = strings.Cut(name, "="); ok && name != "" && fs.Lookup(name) == nil {
			f.warnings = append(f.warnings, "flag --"+name+" has no effect in this proxy")
		}
	}
}

// levels reads "info", "misc:error", or both, separated by commas.
func (f *flags) levels(s string, level *slog.Level, components map[string]slog.Level) {
	for item := range strings.SplitSeq(s, ",") {
		if item = strings.TrimSpace(item); item == "" {
			continue
		}
		name, text, scoped := strings.Cut(item, ":")
		if !scoped {
			text = name
		}
		l, ok := levelNames[strings.ToLower(text)]
		switch {
		case !ok:
			f.warnings = append(f.warnings, fmt.Sprintf("log level %q is unknown", item))
		case scoped:
			components[name] = l
		default:
			*level = l
		}
	}
}

var levelNames = map[string]slog.Level{
	"trace": LevelTrace, "debug": slog.LevelDebug, "info": slog.LevelInfo, "warning": slog.LevelWarn, "warn": slog.LevelWarn,
	"error": slog.LevelError, "critical": LevelCritical, "fatal": LevelCritical, "off": LevelOff, "none": LevelOff,
}
