package main

import (
	"fmt"
	"slices"
	"strings"
)

// goal is a line of the plan: what is to be executed how often, in both ways
// together.
type goal struct {
	id   string
	tier int
	what string
	// targets are those that execute it, "package.Target". Their executions add up.
	targets []string
	// race: sweeps run with the race detector.
	race bool
}

// wanted is the number of executions of a goal in each tier.
var wanted = [3]int64{20_000_000, 5_000_000, 500_000}

var goals = []goal{
	{id: "N1", tier: 0, what: "HTTP/1 request heads against net/http", targets: []string{"proxy/transport/h1.FuzzRequestHead"}},
	{id: "N2", tier: 0, what: "HTTP/1 response heads against net/http", targets: []string{"proxy/transport/h1.FuzzResponseHead"}},
	{id: "N3", tier: 0, what: "chunked bodies against net/http", targets: []string{"proxy/transport/h1.FuzzChunked"}},
	{id: "N4", tier: 0, what: "HTTP/2 frames to a server", targets: []string{"proxy/transport/h2.FuzzServer"}},
	{id: "N5", tier: 0, what: "HPACK against x/net", targets: []string{"proxy/transport/h2.FuzzHpackDecodeAgreesWithXNet"}},
	{id: "N6", tier: 0, what: "path normalization against a slow reference", targets: []string{"proxy/hcm.FuzzCanonicalPath"}},
	{id: "N7", tier: 1, what: "requests of HTTP/2 become canonical HTTP/1", targets: []string{"proxy/transport/h2.FuzzRequestsBecomeCanonicalHTTP1"}},
	{id: "N8", tier: 1, what: "RBAC engine against a naive evaluator", targets: []string{"filters/internal/authz.FuzzEngineAgreesWithTheNaiveEvaluator"}},
	{id: "N9", tier: 1, what: "SPIFFE IDs", targets: []string{"internal/identity.FuzzParseID"}},
	{id: "N10", tier: 1, what: "a mutated token is never accepted", targets: []string{"filters/http/jwtauthn.FuzzAMutatedTokenIsNeverAccepted"}},
	{id: "N11", tier: 1, what: "xDS resources", targets: []string{"xdsclient/xdsresource.FuzzDecode"}},
	{id: "N12", tier: 1, what: "sequences of delta responses against a recount", targets: []string{"xdsclient.FuzzBookkeeping"}},
	{id: "N13", tier: 1, what: "DLP finds the same however a text is cut", targets: []string{"filters/internal/dlp.FuzzChunkInvariance"}},
	{id: "N14", tier: 1, what: "decompressors keep to their bounds", targets: []string{"internal/wasmmodule.FuzzUnpack", "filters/http/dlp.FuzzEncoded"}},
	{id: "N15", tier: 1, what: "bodies of forms, JSON and text", targets: []string{"filters/http/dlp.FuzzDo", "filters/internal/dlp.FuzzStreamInvariance"}},
	{id: "N16", tier: 1, what: "baggage, XFCC, PROXY protocol", targets: []string{"filters/internal/peers.FuzzBaggage", "proxy/hcm.FuzzXFCC", "filters/listener/proxyprotocol.FuzzParse"}},
	{id: "N17", tier: 1, what: "routes against a linear reference", targets: []string{"routing.FuzzMatchAgreesWithTheReference"}},
	{id: "N18", tier: 1, what: "retry headers and timeouts", targets: []string{"proxy/router.FuzzRequestHeaders"}},
	{id: "N20", tier: 2, what: "HTTP/2 requests at once to a server that says anything, under the race detector", targets: []string{"proxy/transport/h2.FuzzClient"}, race: true},
	{id: "N21", tier: 2, what: "workloads, services and policies", targets: []string{"internal/workload.FuzzDecode"}},
	{id: "N22", tier: 2, what: "DNS answers", targets: []string{"internal/dns.FuzzAnswer"}},
	{id: "N23", tier: 2, what: "access log formats", targets: []string{"internal/format.FuzzCompile"}},
	{id: "N24", tier: 2, what: "the bootstrap file", targets: []string{"proxy/bootstrap.FuzzParse"}},
}

const (
	goalsBegin  = "<!-- goals: written by make fuzz -->\n"
	goalsEnd    = "<!-- end of goals -->\n"
	goalsHeader = "| | what | targets | goal | guided | swept | left |\n|---|---|---|---|---|---|---|\n"
)

// goalOf returns the goal that a target belongs to, nil if it has none.
func goalOf(t target) *goal {
	i := slices.IndexFunc(goals, func(g goal) bool { return slices.Contains(g.targets, t.Package+"."+t.Name) })
	if i < 0 {
		return nil
	}
	return &goals[i]
}

// counts adds up what was executed for g.
func (g *goal) counts(rows []row) (guided, swept int64) {
	for _, r := range rows {
		if goalOf(r.target) == g {
			guided += r.executions
			swept += r.swept
		}
	}
	return guided, swept
}

// left is what g lacks.
func (g *goal) left(rows []row) int64 {
	guided, swept := g.counts(rows)
	return max(0, wanted[g.tier]-guided-swept)
}

// goalsTable writes the goals with what has been reached.
func goalsTable(rows []row) string {
	var b strings.Builder
	var want, have int64
	reached := 0
	for i := range goals {
		g := &goals[i]
		want += wanted[g.tier]
		have += wanted[g.tier] - g.left(rows)
		if g.left(rows) == 0 {
			reached++
		}
	}
	fmt.Fprintf(&b, "%s%d of %d goals are reached, with %s of %s executions.\n\n%s", goalsBegin, reached, len(goals), thousands(have), thousands(want), goalsHeader)
	for i := range goals {
		g := &goals[i]
		guided, swept := g.counts(rows)
		fmt.Fprintf(&b, "| %s | %s | `%s` | %s | %s | %s | %s |\n", g.id, g.what, strings.Join(g.targets, "` `"),
			thousands(wanted[g.tier]), thousands(guided), thousands(swept), thousands(g.left(rows)))
	}
	b.WriteString(goalsEnd)
	return b.String()
}

// withGoals puts the table where it belongs in text, if it has a place for it.
func withGoals(text string, rows []row) string {
	before, rest, ok1 := strings.Cut(text, goalsBegin)
	_, after, ok2 := strings.Cut(rest, goalsEnd)
	if !ok1 || !ok2 {
		return text
	}
	return before + goalsTable(rows) + after
}
