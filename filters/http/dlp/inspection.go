package dlp

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/dlp"
	"github.com/fairlead-mesh/fairlead/internal/refusal"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// processKey is the hash key of configurations without one.
var processKey = sync.OnceValue(func() []byte {
	k := make([]byte, 32)
	_, _ = rand.Read(k) // never fails, crypto/rand
	return k
})

// maxReported bounds the kinds of findings of one message that are kept apart
// in its report; maxHashes how many matches of a kind are hashed.
const (
	maxReported = 32
	maxHashes   = 4
)

// tally is one kind of finding in one message. It holds nothing of the match.
type tally struct {
	typ, rule  int
	place      place
	field      string // header name
	action     action
	likelihood dlp.Likelihood
	count      int
	bytes      int // of the longest
	hashes     []string
}

// inspection is the examination of one message. It is used by one goroutine at
// a time.
type inspection struct {
	f   *filter
	set *ruleSet
	dir string

	place    place
	field    string
	seen     []string // matches in the field at hand
	track    bool     // seen is kept
	again    bool     // the field is scanned again, in another reading
	counts   []int
	tallies  []tally
	dropped  int // kinds of findings beyond maxReported
	blocker  *rule
	blocked  string // type of the finding that blocked
	changed  bool
	body     bool // and the body was
	fixed    bool // the length of the body must not change
	headers  [][2]string
	clear    bool // a finding outside of bodies stays as it is
	info     *streaminfo.Info
	reroute  bool   // another route is to be selected
	gone     bool   // the head went on: it is too late for that
	reason   string // why the body can't be inspected, "" if it can
	refused  bool   // and that this refuses the message
	reported bool
	fields   *dlp.Stream

	requestID, traceID, route, principal string

	conn *streaminfo.Conn
	peer *streaminfo.Peer
	to   refusal.To
}

func (f *filter) inspect(set *ruleSet, dir string) *inspection {
	return &inspection{f: f, set: set, dir: dir, counts: make([]int, len(set.rules))}
}

// identify keeps what a report says about the stream: the report may be
// written by the goroutine that sends the body.
func (in *inspection) identify(s *filters.Stream) {
	in.info = &s.Info
	in.requestID, in.traceID, in.route = s.Info.RequestID, refusal.TraceID(&s.Info, &s.Request), s.Info.RouteName
	in.conn, in.peer = s.Info.Conn, refusal.Peer(&s.Info)
	in.principal = refusal.Principal(&s.Info)
	if s.Info.Conn == nil {
		return
	}
	cluster := ""
	if s.Route != nil {
		cluster = s.Route.ClusterName()
	}
	in.to = refusal.ToOf(&s.Info, cluster)
}

// seenBefore notes a match, and reports whether another reading of the field at
// hand has found it already.
func (in *inspection) seenBefore(text []byte) bool {
	switch {
	case !in.track:
		return false
	case in.again && slices.Contains(in.seen, string(text)):
		return true
	}
	in.seen = append(in.seen, string(text))
	return false
}

// found is the sink of the scanners.
func (in *inspection) found(fd dlp.Finding, text []byte) dlp.Edit {
	var best dlp.Edit
	if in.seenBefore(text) {
		return best
	}
	for _, i := range in.set.byType[fd.Type] {
		r := &in.set.rules[i]
		if !r.places[in.place] || fd.Likelihood < r.min || r.allow.has(text) || in.f.cfg.allow.has(text) {
			continue
		}
		in.counts[i]++
		act := r.action
		switch {
		case in.counts[i] < r.count:
			act = report
		case act == route && in.gone:
			act = block
		}
		in.record(fd, i, act, text)
		in.clear = in.clear || in.stays(act)
		if in.f.cfg.dryRun || in.counts[i] < r.count {
			continue
		}
		if r.header != "" {
			in.headers = append(in.headers, [2]string{r.header, strings.ReplaceAll(r.value, "{TYPE}", in.set.engine.Types()[fd.Type])})
		}
		if act == block && in.blocker == nil {
			in.blocker, in.blocked = r, in.set.engine.Types()[fd.Type]
		}
		in.reroute = in.reroute || act == route
		edit := in.edit(act)
		edits := edit == dlp.Mask || edit == dlp.Replace
		in.changed = in.changed || edits
		in.body = in.body || edits && in.place == inBody
		if edit > best.Action {
			best = r.edit
			best.Action = edit
			best.Tag = in.set.tags[i][fd.Type]
			if act == tokenize {
				best.Tag = strings.ReplaceAll(best.Tag, "{TOKEN}", in.f.token(in.set.engine.Types()[fd.Type], text))
			}
		}
	}
	return best
}

// stays reports whether a match remains in a head, or trailers, after act.
func (in *inspection) stays(act action) bool {
	return in.place != inBody && (in.f.cfg.dryRun || act.edit() == dlp.Keep || act == block)
}

// edit is what act does with the bytes of a match.
func (in *inspection) edit(act action) dlp.Action {
	e := act.edit()
	if e == dlp.Replace && in.fixed && in.place == inBody {
		return dlp.Mask
	}
	return e
}

func (in *inspection) record(fd dlp.Finding, ruleIndex int, act action, text []byte) {
	in.f.findings.inc(series{in.dir, in.place, in.set.engine.Types()[fd.Type], act})
	for i := range in.tallies {
		t := &in.tallies[i]
		if t.typ == fd.Type && t.rule == ruleIndex && t.place == in.place && t.field == in.field && t.action == act {
			t.count++
			t.bytes = max(t.bytes, len(text))
			t.likelihood = max(t.likelihood, fd.Likelihood)
			if len(t.hashes) < maxHashes {
				t.hashes = append(t.hashes, in.f.hash(text))
			}
			return
		}
	}
	if len(in.tallies) >= maxReported {
		in.dropped++
		return
	}
	in.tallies = append(in.tallies, tally{
		typ: fd.Type, rule: ruleIndex, place: in.place, field: in.field, action: act, likelihood: fd.Likelihood, count: 1, bytes: len(text),
		hashes: []string{in.f.hash(text)},
	})
}

// hash is a keyed hash by which equal matches can be told to be equal.
func (f *filter) hash(text []byte) string {
	m := hmac.New(sha256.New, f.key)
	m.Write(text)
	return hex.EncodeToString(m.Sum(nil)[:8])
}

// token stands for a value of a type: however it was divided by spaces and
// dashes, and unlike the hash in reports.
func (f *filter) token(typ string, text []byte) string {
	m := hmac.New(sha256.New, f.key)
	m.Write([]byte("token\x00" + typ + "\x00" + compactValue(string(text))))
	return hex.EncodeToString(m.Sum(nil)[:16])
}

// uninspectable notes that the body can't be looked at.
func (in *inspection) uninspectable(reason string) {
	if in.reason != "" {
		return
	}
	in.reason = reason
	in.f.uninspected[in.dir].Inc()
	switch in.f.cfg.deny {
	case denyAlways:
		in.refused = true
	case denyAuto:
		in.refused = in.set.blocks || in.set.edits
	case denyNever:
	}
	in.refused = in.refused && !in.f.cfg.dryRun
}

// details is the response code details of a message that is stopped.
func (in *inspection) details() string {
	if in.blocker != nil {
		return "dlp_blocked{" + in.blocked + "}"
	}
	return "dlp_uninspectable{" + in.reason + "}"
}

// decision is what is told about a message that is stopped.
func (in *inspection) decision() streaminfo.Decision {
	d := streaminfo.Decision{Filter: "dlp", Policy: in.f.name, Reason: "uninspectable_" + in.dir}
	if in.blocker != nil {
		d.Rule, d.Reason = in.blocker.name, "blocked_"+in.dir
	}
	return d
}

// stopped reports whether the message must not go on.
func (in *inspection) stopped() bool { return in.blocker != nil || in.refused }

// report writes the one event of the message, if there is anything to say.
func (in *inspection) report() {
	if in.fields != nil {
		in.fields.Free()
		in.fields = nil
	}
	if in.reported || len(in.tallies) == 0 && in.reason == "" {
		return
	}
	in.reported = true
	level, outcome := slog.LevelInfo, "reported"
	switch {
	case in.f.cfg.dryRun:
		outcome = "dry_run"
	case in.stopped():
		level, outcome = slog.LevelWarn, "blocked"
	case in.reroute:
		outcome = "rerouted"
	case in.changed:
		outcome = "changed"
	}
	attrs := []slog.Attr{
		slog.String("policy", in.f.name), slog.String("direction", in.dir), slog.String("outcome", outcome),
		slog.String("request_id", in.requestID), slog.String("trace_id", in.traceID), slog.String("route", in.route),
		slog.String("source_principal", in.principal),
	}
	if in.conn != nil {
		attrs = append(attrs, in.f.at.Source(in.conn, in.principal, in.peer), in.f.at.Destination(in.to))
	}
	if in.reason != "" {
		attrs = append(attrs, slog.String("uninspectable", in.reason))
	}
	types := in.set.engine.Types()
	list := make([]any, 0, len(in.tallies))
	for i := range in.tallies {
		t := &in.tallies[i]
		m := map[string]any{
			"type": types[t.typ], "place": placeNames[t.place], "rule": in.set.rules[t.rule].name, "action": actionNames[t.action],
			"likelihood": t.likelihood.String(), "count": t.count, "length": t.bytes, "hashes": t.hashes,
		}
		if t.field != "" {
			m["field"] = t.field
		}
		list = append(list, m)
	}
	attrs = append(attrs, slog.Any("findings", list))
	if in.dropped > 0 {
		attrs = append(attrs, slog.Int("findings_not_listed", in.dropped))
	}
	in.f.logger.LogAttrs(context.Background(), level, "dlp findings", attrs...)
}
