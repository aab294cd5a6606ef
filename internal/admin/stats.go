package admin

import (
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

const prometheusType = "text/plain; version=0.0.4; charset=utf-8"

// filter returns the function for "filter=regex", which may match anywhere; nil
// without one.
func filter(r *http.Request) (func(string) bool, error) {
	src := r.URL.Query().Get("filter")
	if src == "" {
		return nil, nil
	}
	re, err := matcher.CompileSafeRegex(".*(?:" + src + ").*")
	if err != nil {
		return nil, fmt.Errorf("filter: %w", err)
	}
	return re.MatchString, nil
}

func (s *Source) prometheus(w http.ResponseWriter, r *http.Request) {
	match, err := filter(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", prometheusType)
	if r.URL.Query().Has("usedonly") || match != nil {
		_ = s.Stats.WritePrometheusUsed(w, match)
		return
	}
	_ = s.Stats.WritePrometheus(w)
}

// statsText writes "name: value" with Envoy's dotted names.
func (s *Source) statsText(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if q.Get("format") == "prometheus" {
		s.prometheus(w, r)
		return
	}
	match, err := filter(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var list []any
	asJSON := q.Get("format") == "json"
	text(w)
	s.Stats.Each(func(m *stats.Sample) bool {
		name := dottedName(m)
		if q.Has("usedonly") && !m.Used() || match != nil && !match(name) {
			return true
		}
		switch {
		case asJSON && m.Dist == nil:
			list = append(list, object{"name": name, "value": m.Value})
		case asJSON:
			list = append(list, object{"name": name, "count": m.Dist.Count, "sum": m.Dist.Sum})
		case m.Dist != nil:
			write(w, "%s: %s\n", name, quantiles(m.Dist))
		default:
			write(w, "%s: %s\n", name, strconv.FormatFloat(m.Value, 'f', -1, 64))
		}
		return true
	})
	if asJSON {
		if list == nil {
			list = []any{}
		}
		writeJSON(w, object{"stats": list})
	}
}

// roots turn Envoy's tags back into the start of a dotted name.
var roots = []struct{ prefix, label, root string }{
	{"envoy_cluster_", "envoy_cluster_name", "cluster."},
	{"envoy_http_", "envoy_http_conn_manager_prefix", "http."},
	{"envoy_listener_", "envoy_listener_address", "listener."},
	{"envoy_tcp_", "envoy_tcp_prefix", "tcp."},
}

// dottedName is "cluster.NAME.upstream_rq_total"; labels that are not part of
// the name stay behind it.
func dottedName(m *stats.Sample) string {
	name, used := strings.TrimPrefix(m.Name, "envoy_"), ""
	for _, r := range roots {
		rest, ok := strings.CutPrefix(m.Name, r.prefix)
		if !ok {
			continue
		}
		for _, l := range m.Labels {
			if l.Name == r.label {
				name, used = r.root+l.Value+"."+rest, l.Name
			}
		}
	}
	sep := "{"
	var behind strings.Builder
	for _, l := range m.Labels {
		switch {
		case l.Name == used:
		case l.Name == "envoy_response_code_class" && strings.HasSuffix(name, "_xx"):
			name = strings.TrimSuffix(name, "xx") + l.Value + "xx"
		case l.Name == "envoy_response_code":
			name += "_" + l.Value
		default:
			behind.WriteString(sep + l.Name + `="` + l.Value + `"`)
			sep = ","
		}
	}
	name += behind.String()
	if sep == "," {
		name += "}"
	}
	return name
}

// quantiles writes a histogram like Envoy, without the interval column.
func quantiles(d *stats.Distribution) string {
	if d.Count == 0 {
		return "No recorded values"
	}
	var b strings.Builder
	for i, p := range []float64{0, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 100} {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString("P" + strconv.FormatFloat(p, 'g', -1, 64) + "(nan," + strconv.FormatFloat(quantile(d, p/100), 'g', 5, 64) + ")")
	}
	return b.String()
}

// quantile interpolates inside the bucket that q falls into.
func quantile(d *stats.Distribution, q float64) float64 {
	rank := q * float64(d.Count)
	seen := 0.0
	for i, n := range d.Counts {
		if n == 0 || seen+float64(n) < rank {
			seen += float64(n)
			continue
		}
		low := 0.0
		if i > 0 {
			low = d.Bounds[i-1]
		}
		if i == len(d.Bounds) {
			return low
		}
		return low + (d.Bounds[i]-low)*math.Max(0, rank-seen)/float64(n)
	}
	return d.Bounds[len(d.Bounds)-1]
}
