package rego

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/filters/http/rego/regopb"
	"github.com/fairlead-mesh/fairlead/internal/otlp"
)

const (
	defaultMaskQuery = "data.system.log.mask"
	defaultDropQuery = "data.system.log.drop"

	stdoutPath = "/dev/stdout"

	defaultExportTimeout = 10 * time.Second
	defaultFlush         = time.Second
	defaultBatch         = 512
	maxBatch             = 10_000
	defaultQueue         = 4096
	maxQueue             = 1_000_000
)

// defaultMasks are removed unless mask_defaults is DISABLED.
var defaultMasks = []string{
	"/input/attributes/request/http/headers/authorization",
	"/input/attributes/request/http/headers/proxy-authorization",
	"/input/attributes/request/http/headers/cookie",
	"/input/attributes/request/http/body",
	"/input/attributes/request/http/rawBody",
	"/input/parsed_body",
	"/request/headers/authorization",
	"/request/headers/proxy-authorization",
	"/request/headers/cookie",
}

// logConfig is a validated DecisionLog.
type logConfig struct {
	filename                    string // "" if there is only otlp
	otlp                        *otlpConfig
	includeInput, includeResult bool
	deniedOnly                  bool
	mask                        [][]string // split JSON pointers
	headers                     []string
	maskQuery, dropQuery        string
	maskRequired, dropRequired  bool
}

// otlpConfig is a validated OTLP. It is a key of shared state.
type otlpConfig struct {
	cluster, scheme, authority, path string
	grpc                             bool
	credentials                      credentials // zero: none
	timeout, flush                   time.Duration
	batch, queue                     int
}

func decodeLog(m *regopb.DecisionLog) (*logConfig, error) {
	l := &logConfig{
		filename: m.GetFilename(), includeInput: m.GetIncludeInput(), includeResult: m.GetIncludeResult(), deniedOnly: m.GetDeniedOnly(),
		maskRequired: m.GetMaskDecision() != "", dropRequired: m.GetDropDecision() != "",
	}
	if _, ok := regopb.DecisionLog_MaskDefaults_name[int32(m.GetMaskDefaults())]; !ok {
		return nil, fmt.Errorf("mask_defaults: unknown value %d", m.GetMaskDefaults())
	}
	masks := slices.Clone(m.GetMask())
	if m.GetMaskDefaults() == regopb.DecisionLog_ENABLED {
		masks = append(masks, defaultMasks...)
	}
	for i, p := range masks {
		path, err := splitPointer(p)
		if err != nil {
			return nil, fmt.Errorf("mask[%d]: %w", i, err)
		}
		l.mask = append(l.mask, path)
	}
	for _, h := range m.GetHeaders() {
		l.headers = append(l.headers, strings.ToLower(h))
	}
	var err error
	if l.maskQuery, err = decodePath("mask_decision", m.GetMaskDecision(), defaultMaskQuery); err != nil {
		return nil, err
	}
	if l.dropQuery, err = decodePath("drop_decision", m.GetDropDecision(), defaultDropQuery); err != nil {
		return nil, err
	}
	if m.GetOtlp() != nil {
		if l.otlp, err = decodeOTLP(m.GetOtlp()); err != nil {
			return nil, fmt.Errorf("otlp.%w", err)
		}
	} else if l.filename == "" {
		l.filename = stdoutPath
	}
	return l, nil
}

// splitPointer splits a JSON pointer into an event.
func splitPointer(p string) ([]string, error) {
	if !strings.HasPrefix(p, "/") {
		return nil, fmt.Errorf("%q is not a JSON pointer: must begin with /", p)
	}
	parts := strings.Split(p[1:], "/")
	for k := range parts {
		parts[k] = strings.ReplaceAll(strings.ReplaceAll(parts[k], "~1", "/"), "~0", "~")
	}
	switch parts[0] {
	case "input", "result", "request", "nd_builtin_cache": // OPA's; never there
		return parts, nil
	}
	return nil, fmt.Errorf("%q: must be below /input, /result or /request", p)
}

func joinPointer(parts []string) string {
	var b strings.Builder
	for _, p := range parts {
		b.WriteByte('/')
		b.WriteString(strings.ReplaceAll(strings.ReplaceAll(p, "~", "~0"), "/", "~1"))
	}
	return b.String()
}

func decodeOTLP(m *regopb.OTLP) (*otlpConfig, error) {
	o := &otlpConfig{
		cluster: m.GetCluster(), scheme: scheme(m.GetHttps()), authority: m.GetAuthority(), path: m.GetPath(),
		grpc: m.GetProtocol() == regopb.OTLP_GRPC, batch: defaultBatch, queue: defaultQueue,
	}
	if o.cluster == "" {
		return nil, errors.New("cluster: required")
	}
	if o.authority == "" {
		o.authority = o.cluster
	}
	if _, ok := regopb.OTLP_Protocol_name[int32(m.GetProtocol())]; !ok {
		return nil, fmt.Errorf("protocol: unknown value %d", m.GetProtocol())
	}
	switch {
	case o.grpc && o.path != "":
		return nil, errors.New("path: gRPC has a path of its own")
	case o.grpc:
		o.path = otlp.LogsExport
	case o.path == "":
		o.path = "/v1/logs"
	}
	if err := checkTarget(o.path, o.authority); err != nil {
		return nil, err
	}
	c, err := decodeCredentials(m.GetCredentials())
	if err != nil {
		return nil, fmt.Errorf("credentials.%w", err)
	}
	if c != nil {
		o.credentials = *c
	}
	if o.timeout, err = duration("timeout", m.GetTimeout(), defaultExportTimeout, time.Millisecond, time.Minute); err != nil {
		return nil, err
	}
	if o.flush, err = duration("flush_interval", m.GetFlushInterval(), defaultFlush, time.Millisecond, time.Minute); err != nil {
		return nil, err
	}
	if n := m.GetMaxBatch(); n > maxBatch {
		return nil, fmt.Errorf("max_batch: %d exceeds %d", n, maxBatch)
	} else if n > 0 {
		o.batch = int(n)
	}
	if n := m.GetMaxQueue(); n > maxQueue {
		return nil, fmt.Errorf("max_queue: %d exceeds %d", n, maxQueue)
	} else if n > 0 {
		o.queue = int(n)
	}
	return o, nil
}
