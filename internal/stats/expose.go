package stats

import (
	"bufio"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
)

// WritePrometheus writes all metrics in the text exposition format 0.0.4,
// families sorted by name.
func (r *Registry) WritePrometheus(w io.Writer) error { return r.write(w, false, nil) }

// WritePrometheusUsed is WritePrometheus without counters and histograms of
// scopes that never counted anything; with thousands of clusters, most don't.
// match, if not nil, selects families by name.
func (r *Registry) WritePrometheusUsed(w io.Writer, match func(name string) bool) error {
	return r.write(w, true, match)
}

// Sample is one series as Each shows it: exactly one of Value and Dist is
// meaningful, by Kind.
type Sample struct {
	Name string
	// Kind is "counter", "gauge" or "histogram".
	Kind   string
	Help   string
	Labels []Label
	// LabelText is `a="b",c="d"`.
	LabelText string
	Value     float64
	Dist      *Distribution
}

// Used reports whether the series ever counted something. Gauges always did.
func (s *Sample) Used() bool {
	switch s.Kind {
	case kindNames[counterKind]:
		return s.Value != 0
	case kindNames[histogramKind]:
		return s.Dist.Count != 0
	}
	return true
}

// Each calls yield for every series, sorted by name and labels, until it
// returns false.
func (r *Registry) Each(yield func(*Sample) bool) {
	for _, row := range r.rows() {
		s := Sample{Name: row.f.name, Kind: kindNames[row.f.kind], Help: row.help, Labels: row.set.labels, LabelText: row.set.text}
		switch m := row.m.(type) {
		case *Counter:
			s.Value = float64(m.Value())
		case *Gauge:
			s.Value = float64(m.Value())
		case valueFunc:
			s.Value = row.v
		case *Histogram:
			d := m.Distribution()
			s.Dist = &d
		}
		if !yield(&s) {
			return
		}
	}
}

// row is one series on its way out.
type row struct {
	f    *family
	help string
	set  *labelSet
	m    any
	v    float64 // of a valueFunc
}

// rows copies what there is, so that writing takes no lock.
func (r *Registry) rows() []row {
	r.scrape.Lock()
	defer r.scrape.Unlock()
	r.mu.Lock()
	collect := slices.Clone(r.collect)
	r.mu.Unlock()
	for _, f := range collect {
		f()
	}
	r.mu.Lock()
	var rows []row
	for _, set := range r.sets {
		for _, s := range set.series {
			rows = append(rows, row{f: s.f, help: helpOf(s.f), set: set, m: s.m})
		}
	}
	r.mu.Unlock()
	for i := range rows {
		if f, ok := rows[i].m.(valueFunc); ok {
			rows[i].v = f()
		}
	}
	slices.SortFunc(rows, func(a, b row) int {
		if c := strings.Compare(a.f.name, b.f.name); c != 0 {
			return c
		}
		return strings.Compare(a.set.text, b.set.text)
	})
	return rows
}

func helpOf(f *family) string {
	if f.help != "" {
		return f.help
	}
	if h, ok := knownHelp[f.name]; ok {
		return h
	}
	// A sentence from the name is better than none: "Upstream rq total."
	words := strings.ReplaceAll(strings.TrimPrefix(strings.TrimPrefix(f.name, "envoy_"), "fairlead_"), "_", " ")
	if words == "" {
		return f.name
	}
	return strings.ToUpper(words[:1]) + words[1:] + "."
}

func (r *Registry) write(out io.Writer, usedOnly bool, match func(string) bool) error {
	w := bufio.NewWriterSize(out, 64<<10)
	last := ""
	var b []byte
	r.Each(func(s *Sample) bool {
		if match != nil && !match(s.Name) || usedOnly && !s.Used() {
			return true
		}
		b = b[:0]
		if s.Name != last {
			last = s.Name
			b = append(append(append(b, "# HELP "...), s.Name...), ' ')
			b = append(appendHelp(b, s.Help), '\n')
			b = append(append(append(b, "# TYPE "...), s.Name...), ' ')
			b = append(append(b, s.Kind...), '\n')
		}
		if s.Dist != nil {
			b = appendHistogram(b, s)
		} else {
			b = appendLine(b, s.Name, "", s.LabelText, "", s.Value)
		}
		_, err := w.Write(b)
		return err == nil
	})
	return w.Flush()
}

func appendHistogram(b []byte, s *Sample) []byte {
	var n uint64
	for i, c := range s.Dist.Counts {
		n += c
		le := "+Inf"
		if i < len(s.Dist.Bounds) {
			le = formatFloat(s.Dist.Bounds[i])
		}
		b = appendLine(b, s.Name, "_bucket", s.LabelText, le, float64(n))
	}
	b = appendLine(b, s.Name, "_sum", s.LabelText, "", s.Dist.Sum)
	return appendLine(b, s.Name, "_count", s.LabelText, "", float64(n))
}

func appendLine(b []byte, name, suffix, labels, le string, v float64) []byte {
	b = append(append(b, name...), suffix...)
	if labels != "" || le != "" {
		b = append(append(b, '{'), labels...)
		if le != "" {
			if labels != "" {
				b = append(b, ',')
			}
			b = append(append(append(b, `le="`...), le...), '"')
		}
		b = append(b, '}')
	}
	b = append(b, ' ')
	return append(append(b, formatFloat(v)...), '\n')
}

func formatFloat(v float64) string {
	switch {
	case math.IsInf(v, 1):
		return "+Inf"
	case math.IsInf(v, -1):
		return "-Inf"
	case v == math.Trunc(v) && math.Abs(v) < 1<<53:
		return strconv.FormatInt(int64(v), 10)
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}

func appendHelp(b []byte, s string) []byte {
	for i := range len(s) {
		switch s[i] {
		case '\\':
			b = append(b, '\\', '\\')
		case '\n':
			b = append(b, '\\', 'n')
		default:
			b = append(b, s[i])
		}
	}
	return b
}

// labelText renders labels as between the braces of a series.
func labelText(ls []Label) string {
	if len(ls) == 0 {
		return ""
	}
	var b strings.Builder
	for i, l := range ls {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(l.Name)
		b.WriteString(`="`)
		for k := range len(l.Value) {
			switch c := l.Value[k]; c {
			case '\\', '"':
				b.WriteByte('\\')
				b.WriteByte(c)
			case '\n':
				b.WriteString(`\n`)
			default:
				b.WriteByte(c)
			}
		}
		b.WriteByte('"')
	}
	return strings.ToValidUTF8(b.String(), "\uFFFD")
}

// knownHelp describes metrics that several packages use.
var knownHelp = map[string]string{
	"istio_requests_total":                              "Requests handled, by source, destination and response.",
	"istio_request_duration_milliseconds":               "Duration of requests in milliseconds.",
	"istio_request_bytes":                               "Size of requests on the wire in bytes.",
	"istio_response_bytes":                              "Size of responses on the wire in bytes.",
	"istio_tcp_connections_opened_total":                "TCP connections opened.",
	"istio_tcp_connections_closed_total":                "TCP connections closed.",
	"istio_tcp_sent_bytes_total":                        "Bytes sent on TCP connections.",
	"istio_tcp_received_bytes_total":                    "Bytes received on TCP connections.",
	"fairlead_access_log_dropped_lines_total":           "Access log lines dropped because a sink could not keep up.",
	"fairlead_access_log_failed_writes_total":           "Access log writes that failed.",
	"fairlead_callout_breaker_state":                    "Circuit breaker of the calls that filters make: 0 closed, 1 trying again, 2 open.",
	"fairlead_callout_breaker_opened_total":             "Times that the breaker of filters' calls opened.",
	"fairlead_callout_failed_total":                     "Calls of filters that the cluster was not available for.",
	"fairlead_callout_rejected_total":                   "Calls of filters that were not made because the breaker was open.",
	"envoy_cluster_upstream_rq_total":                   "Requests sent to the cluster.",
	"envoy_server_days_until_first_cert_expiring":       "Whole days until the first of the proxy's certificates expires, 4294967295 without any.",
	"fairlead_certificate_expiration_unix_time_seconds": "When a certificate of the proxy expires, in seconds since the epoch.",
	"envoy_cluster_upstream_rq_time":                    "Time of requests to the cluster in milliseconds.",
	"envoy_http_downstream_rq_total":                    "Requests received.",
	"envoy_listener_downstream_cx_total":                "Connections accepted.",
	"envoy_cluster_membership_healthy":                  "Hosts of the cluster that are healthy.",
	"envoy_cluster_membership_total":                    "Hosts of the cluster.",
	"envoy_cluster_upstream_cx_connect_fail":            "Connections to the cluster that could not be made.",
	"envoy_cluster_upstream_rq_pending_active":          "Requests to the cluster that wait for a connection.",
}
