package admin

import (
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
)

// Logging is what /logging shows and changes.
type Logging interface {
	// Levels returns the level of each logger by name, in Envoy's words.
	Levels() map[string]string
	// SetLevel changes one logger, or all of them if name is "".
	SetLevel(name, level string) error
}

// LevelVar is a Logging with the one level that v holds.
type LevelVar struct{ V *slog.LevelVar }

// LevelOff is above every level that is logged.
const LevelOff = slog.Level(100)

var levelNames = []struct {
	name  string
	level slog.Level
}{
	{"trace", slog.LevelDebug - 4},
	{"debug", slog.LevelDebug},
	{"info", slog.LevelInfo},
	{"warning", slog.LevelWarn},
	{"error", slog.LevelError},
	{"critical", slog.LevelError + 4},
	{"off", LevelOff},
}

// Levels implements Logging.
func (l LevelVar) Levels() map[string]string {
	name := levelNames[0].name
	for _, n := range levelNames {
		if l.V.Level() >= n.level {
			name = n.name
		}
	}
	return map[string]string{"default": name}
}

// SetLevel implements Logging.
func (l LevelVar) SetLevel(name, level string) error {
	if name != "" && name != "default" {
		return fmt.Errorf("unknown logger name %q: there is one, \"default\"", name)
	}
	v, ok := ParseLevel(level)
	if !ok {
		return fmt.Errorf("unknown level %q: want trace, debug, info, warning, error, critical or off", level)
	}
	l.V.Set(v)
	return nil
}

// ParseLevel translates Envoy's name of a level.
func ParseLevel(name string) (slog.Level, bool) {
	if name == "warn" {
		name = "warning"
	}
	for _, n := range levelNames {
		if n.name == name {
			return n.level, true
		}
	}
	return 0, false
}

// logging handles "level=x" for all loggers and "name=x" for one.
func (s *Source) logging(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	for name, vs := range q {
		if name == "level" {
			name = ""
		}
		if err := s.Logging.SetLevel(name, vs[0]); err != nil {
			http.Error(w, "error: "+err.Error(), http.StatusBadRequest)
			return
		}
	}
	text(w)
	write(w, "active loggers:\n")
	levels := s.Logging.Levels()
	names := make([]string, 0, len(levels))
	for n := range levels {
		names = append(names, n)
	}
	slices.SortFunc(names, strings.Compare)
	for _, n := range names {
		write(w, "  %s: %s\n", n, levels[n])
	}
}
