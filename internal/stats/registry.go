package stats

import (
	"slices"
	"strings"
	"sync"
)

// Bounds of the number of series of one family, unless Registry says
// otherwise.
const (
	// DefaultMaxSeries is for handles of scopes, whose labels come from
	// configuration (10,000 clusters are expected).
	DefaultMaxSeries = 50_000
	// DefaultMaxFamilySeries is for families, whose labels come from traffic.
	DefaultMaxFamilySeries = 5_000
)

// Overflow is the label value of the series that counts for all beyond the
// bound.
const Overflow = "overflow"

// Registry is the set of all metrics of a process. The zero Registry is empty
// and ready. It is safe for concurrent use.
type Registry struct {
	// MaxSeries and MaxFamilySeries replace the defaults if not 0. They must be
	// set before use.
	MaxSeries, MaxFamilySeries int

	process *process // of RegisterProcess, guarded by mu

	scrape   sync.Mutex // serializes functions of metrics and collect; taken before mu
	mu       sync.Mutex
	families map[string]*family
	sets     map[string]*labelSet // by text
	collect  []func()             // run before a scrape
}

type kind uint8

const (
	counterKind kind = iota + 1
	gaugeKind
	histogramKind
)

var kindNames = [...]string{"", "counter", "gauge", "histogram"}

// family is all series of one name.
type family struct {
	name, help string
	kind       kind
	bounds     []float64
	n, max     int
	// fromTraffic marks a family bounded by MaxFamilySeries.
	fromTraffic bool
	// owned says that its series are of objects that may be released.
	owned bool
}

// labelSet is one combination of labels with all metrics that carry it. Few
// metrics share a set, so a slice costs less than a map of series.
type labelSet struct {
	// text is `a="b",c="d"`, "" for none.
	text   string
	labels []Label
	series []series // ordered by family name
	// dead is set once Forget removed the set.
	dead bool
}

type series struct {
	f *family
	// m is *Counter, *Gauge, *Histogram or valueFunc.
	m any
}

// valueFunc is a gauge or counter that is computed when it is read.
type valueFunc func() float64

// Scope returns the root scope of r with the given labels on every series. A
// nil Registry gives a nil Scope.
func (r *Registry) Scope(prefix string, labels ...Label) *Scope {
	if r == nil {
		return nil
	}
	return (&Scope{r: r}).Scope(prefix, labels...)
}

// Scope returns a scope below s: its prefix appended, its labels added.
func (s *Scope) Scope(prefix string, labels ...Label) *Scope {
	if s == nil {
		return nil
	}
	n := &Scope{r: s.r, prefix: s.prefix + prefix, labels: mergeLabels(s.labels, labels), owned: s.owned}
	s.r.mu.Lock()
	n.set = s.r.set(n.labels)
	s.r.mu.Unlock()
	return n
}

// Counter returns the counter called name below s.
func (s *Scope) Counter(name string, labels ...Label) *Counter {
	return take(s, name, counterKind, nil, labels, func(*family) *Counter { return new(Counter) })
}

// Gauge returns the gauge called name below s.
func (s *Scope) Gauge(name string, labels ...Label) *Gauge {
	return take(s, name, gaugeKind, nil, labels, func(*family) *Gauge { return new(Gauge) })
}

// Histogram returns the histogram called name below s; nil buckets mean
// Envoy's default bounds (0.5 ms to 3,600,000 ms). The bounds of the first use
// of a name stay.
func (s *Scope) Histogram(name string, buckets []float64, labels ...Label) *Histogram {
	return take(s, name, histogramKind, buckets, labels, func(f *family) *Histogram { return &Histogram{bounds: f.bounds} })
}

// GaugeFunc registers a gauge that is computed by f at each scrape, replacing
// an earlier function. f must not block.
func (s *Scope) GaugeFunc(name string, f func() float64, labels ...Label) {
	s.register(name, gaugeKind, f, labels)
}

// CounterFunc is GaugeFunc for values that only go up.
func (s *Scope) CounterFunc(name string, f func() float64, labels ...Label) {
	s.register(name, counterKind, f, labels)
}

func (s *Scope) register(name string, k kind, f valueFunc, labels []Label) {
	if s == nil {
		return
	}
	r := s.r
	r.mu.Lock()
	defer r.mu.Unlock()
	fam := r.family(metricName(s.prefix+name), k, nil, false)
	if fam == nil || s.owned != nil && s.owned.released {
		return
	}
	fam.owned = fam.owned || s.owned != nil
	set := r.set(mergeLabels(s.labels, labels))
	if i, found := set.find(fam.name); found {
		set.series[i].m = f
	} else {
		set.insert(i, series{fam, f})
		fam.n++
	}
}

// take returns the handle of s under name. A name that is taken by another
// kind of metric gives a handle that counts but is never shown.
func take[M any](s *Scope, name string, k kind, buckets []float64, labels []Label, create func(*family) *M) *M {
	if s == nil {
		return nil
	}
	r := s.r
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.family(metricName(s.prefix+name), k, buckets, false)
	if f == nil {
		return create(&family{bounds: bounds(buckets)})
	}
	if s.owned != nil && s.owned.released {
		return create(f)
	}
	if s.set.dead {
		s.set = r.set(s.labels)
	}
	set := s.set
	if len(labels) > 0 {
		set = r.set(mergeLabels(s.labels, labels))
	}
	f.owned = f.owned || s.owned != nil
	return handle(r, f, set, create)
}

// handle returns the series of f in set, making it if there is room. r is
// locked.
func handle[M any](r *Registry, f *family, set *labelSet, create func(*family) *M) *M {
	i, found := set.find(f.name)
	if found {
		if m, ok := set.series[i].m.(*M); ok {
			return m
		}
		return create(f)
	}
	if f.n >= f.max && !isOverflow(set.labels) {
		over := slices.Clone(set.labels)
		for i := range over {
			over[i].Value = Overflow
		}
		return handle(r, f, r.set(over), create)
	}
	m := create(f)
	set.insert(i, series{f, m})
	f.n++
	return m
}

func isOverflow(ls []Label) bool {
	return !slices.ContainsFunc(ls, func(l Label) bool { return l.Value != Overflow })
}

// family returns the family called name, nil if it is of another kind.
func (r *Registry) family(name string, k kind, buckets []float64, fromTraffic bool) *family {
	f := r.families[name]
	if f == nil {
		f = &family{name: name, kind: k, max: r.MaxSeries, fromTraffic: fromTraffic}
		def := DefaultMaxSeries
		if fromTraffic {
			f.max, def = r.MaxFamilySeries, DefaultMaxFamilySeries
		}
		if f.max <= 0 {
			f.max = def
		}
		if k == histogramKind {
			f.bounds = bounds(buckets)
		}
		if r.families == nil {
			r.families = map[string]*family{}
		}
		r.families[name] = f
	}
	if f.kind != k {
		return nil
	}
	return f
}

func bounds(b []float64) []float64 {
	if b == nil {
		return DefaultBuckets
	}
	b = slices.Clone(b)
	slices.Sort(b)
	return b
}

// Describe sets the HELP text of a metric.
func (r *Registry) Describe(name, help string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f := r.families[name]; f != nil {
		f.help = help
	}
}

// Forget removes every series that carries the label, for example of a cluster
// that is gone. Handles that are still held go on counting unseen.
func (r *Registry) Forget(l Label) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for text, set := range r.sets {
		if !slices.Contains(set.labels, l) {
			continue
		}
		for _, s := range set.series {
			s.f.n--
		}
		set.series, set.dead = nil, true
		delete(r.sets, text)
	}
}

// OnCollect registers f to run before each scrape, to bring gauges up to date.
func (r *Registry) OnCollect(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.collect = append(r.collect, f)
}

// set returns the interned label set. r is locked.
func (r *Registry) set(ls []Label) *labelSet {
	text := labelText(ls)
	s := r.sets[text]
	if s == nil {
		s = &labelSet{text: text, labels: ls}
		if r.sets == nil {
			r.sets = map[string]*labelSet{}
		}
		r.sets[text] = s
	}
	return s
}

func (s *labelSet) find(name string) (int, bool) {
	return slices.BinarySearchFunc(s.series, name, func(e series, n string) int { return strings.Compare(e.f.name, n) })
}

func (s *labelSet) insert(i int, e series) { s.series = slices.Insert(s.series, i, e) }

// mergeLabels appends b to a; a later label replaces an earlier one of the
// same name.
func mergeLabels(a, b []Label) []Label {
	if len(b) == 0 {
		return a
	}
	out := slices.Clone(a)
	for _, l := range b {
		l.Name = labelName(l.Name)
		if i := slices.IndexFunc(out, func(o Label) bool { return o.Name == l.Name }); i >= 0 {
			out[i] = l
		} else {
			out = append(out, l)
		}
	}
	return out
}

// metricName replaces what Prometheus doesn't allow in a name by "_".
func metricName(s string) string { return sanitize(s, true) }

func labelName(s string) string { return sanitize(s, false) }

func sanitize(s string, colon bool) string {
	ok := func(i int, c byte) bool {
		return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_' || c == ':' && colon || i > 0 && '0' <= c && c <= '9'
	}
	for i := range len(s) {
		if ok(i, s[i]) {
			continue
		}
		b := []byte(s)
		for k := range b {
			if !ok(k, b[k]) {
				b[k] = '_'
			}
		}
		return string(b)
	}
	return s
}
