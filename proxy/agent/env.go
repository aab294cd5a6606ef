package agent

import (
	"encoding/json"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"
)

// env is the environment. A value that can't be read falls back to the default
// with a warning, as pilot-agent does.
type env struct {
	vars     map[string]string
	list     []string
	warnings []string
}

func newEnv(list []string) *env {
	e := &env{vars: make(map[string]string, len(list)), list: list}
	for _, kv := range list {
		if k, v, ok := strings.Cut(kv, "="); ok {
			e.vars[k] = v
		}
	}
	return e
}

func (e *env) str(key, def string) string {
	if v := e.vars[key]; v != "" {
		return v
	}
	return def
}

func parse[T any](e *env, key string, def T, f func(string) (T, error)) T {
	s := strings.TrimSpace(e.vars[key])
	if s == "" {
		return def
	}
	v, err := f(s)
	if err != nil {
		e.warnings = append(e.warnings, fmt.Sprintf("%s=%q can't be read, using %v: %v", key, s, def, err))
		return def
	}
	return v
}

func (e *env) integer(key string, def int) int { return parse(e, key, def, strconv.Atoi) }

func (e *env) boolean(key string) bool { return parse(e, key, false, strconv.ParseBool) }

func (e *env) duration(key string, def time.Duration) time.Duration {
	return parse(e, key, def, time.ParseDuration)
}

// float reads a share, from 0 to 1.
func (e *env) float(key string, def float64) float64 {
	return parse(e, key, def, func(s string) (float64, error) {
		f, err := strconv.ParseFloat(s, 64)
		if err == nil && !(f >= 0 && f <= 1) {
			err = strconv.ErrRange
		}
		return f, err
	})
}

// prefixed returns the variables that start with prefix as headers, with one
// more.
func (e *env) prefixed(prefix, key, value string) map[string]string {
	m := map[string]string{key: value}
	for k, v := range e.vars {
		if name, ok := strings.CutPrefix(k, prefix); ok && name != "" {
			m[strings.ToLower(name)] = v
		}
	}
	return m
}

// metadata collects ISTIO_META_* and ISTIO_METAJSON_* as pilot-agent does: the
// former as strings by the rest of their name, the latter as objects whose
// keys are merged.
func (e *env) metadata(into map[string]any) {
	const meta, metaJSON = "ISTIO_META_", "ISTIO_METAJSON_"
	for _, kv := range e.list {
		k, v, _ := strings.Cut(kv, "=")
		if name, ok := strings.CutPrefix(k, meta); ok {
			into[name] = v
		}
	}
	for _, kv := range e.list {
		k, v, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(k, metaJSON) {
			continue
		}
		m := map[string]any{}
		if err := json.Unmarshal([]byte(v), &m); err != nil {
			e.warnings = append(e.warnings, fmt.Sprintf("%s is no JSON object: %v", k, err))
			continue
		}
		maps.Copy(into, m)
	}
}
