package main

// bugs are defects that a change could bring, each a few bytes long.
var bugs = []bug{
	// HTTP/1
	{"a line feed alone ends a chunk's size", "proxy/transport/h1/chunk.go", "	case b == ';':\n		c.state = chunkExt", "	case b == '\\n':\n		c.digits, c.state = 0, chunkData\n	case b == ';':\n		c.state = chunkExt", "proxy/transport/h1", ""},
	{"two lengths are one", "proxy/transport/h1/request.go", "	case f.lengths > 1:\n", "	case f.lengths > 2:\n", "proxy/transport/h1", ""},
	{"a length beside chunks", "proxy/transport/h1/request.go", "f.lengths > 0 && !cfg.AllowChunkedLength", "f.lengths > 1 && !cfg.AllowChunkedLength", "proxy/transport/h1", ""},
	{"any coding is chunked", "proxy/transport/h1/request.go", "f.codings > 1 || f.codings == 1 && !f.chunked:\n		return errTE\n", "f.codings > 1:\n		return errTE\n", "proxy/transport/h1", ""},
	{"extensions of chunks without end", "proxy/transport/h1/chunk.go", "c.ext > maxChunkExt", "c.ext > maxChunkExt<<10", "proxy/transport/h1", ""},
	{"what Connection names stays", "proxy/transport/h1/parse.go", "	if len(p.names) == 0 {\n", "	if len(p.names) < 1000 {\n", "proxy/transport/h1", ""},
	{"two hosts", "proxy/transport/h1/request.go", "p.f.hosts > 1 ||", "p.f.hosts > 2 ||", "proxy/transport/h1", ""},
	{"Connection removes x-forwarded-client-cert", "proxy/transport/h1/parse.go", `		return fold(name, "x-forwarded-client-cert")`, "		return false", "proxy/hcm", ""},
	// HTTP/2
	{"spaces in :path", "proxy/transport/h2/validate.go", "if c > 0x20 && c < 0x7f {", "if c >= 0x20 && c < 0x7f {", "proxy/transport/h2", ""},
	{"any number of fields", "proxy/transport/h2/head.go", "b.size > b.maxBytes || b.count > b.maxFields {", "b.size > b.maxBytes {", "proxy/transport/h2", "TestServerProtocol|TestABomb"},
	{"rapid reset is free", "proxy/transport/h2/flood.go", "r.flood.resets.take(time.Now(), 1,", "r.flood.resets.take(time.Now(), 0,", "proxy/transport/h2", "TestServerProtocol"},
	{"control frames are free", "proxy/transport/h2/flood.go", "r.flood.glitches.take(time.Now(), 1,", "r.flood.glitches.take(time.Now(), 0,", "proxy/transport/h2", "TestServerProtocol"},
	{"empty frames are free", "proxy/transport/h2/flood.go", "r.flood.empty++; r.flood.empty >", "r.flood.empty += 0; r.flood.empty >", "proxy/transport/h2", "TestServerProtocol"},
	{"a body longer than its length", "proxy/transport/h2/readdata.go", "		case feedLength:\n			return true, r.fault(s, id, codeProtocol, \"body differs from content-length\")", "		case feedLength:\n			return true, nil", "proxy/transport/h2", "TestServerProtocol"},
	{"a table larger than was offered", "proxy/transport/h2/hpack_decode.go", "if n > uint64(d.limit) {", "if n > uint64(d.limit)<<8 {", "proxy/transport/h2", "Hpack|Blocks|RFC7541|TestServerProtocol"},
	// the connection manager
	{"the client's x-forwarded-client-cert is kept", "proxy/hcm/xfcc.go", "mode == xdsresource.XFCCSanitize || !mutual", "mode == xdsresource.XFCCSanitize && !mutual", "proxy/hcm", ""},
	{"methods in small letters", "proxy/hcm/admit.go", "	if hasLower(h.Get(message.Method)) {", "	if hasLower(h.Get(message.Method)) && len(h.Get(message.Method)) > 100 {", "proxy", "TestNoSpellingOfARequest"},
	{"fragments", "proxy/hcm/admit.go", "if strings.IndexByte(path, '#') >= 0 {", "if strings.IndexByte(path, '#') > len(path) {", "proxy/hcm", ""},
	{"an outside request keeps internal headers", "proxy/hcm/admit.go", "edge := !internal && spec.UseRemoteAddress", "edge := internal && spec.UseRemoteAddress", "proxy/hcm", ""},
	// policies
	{"grants look at any value", "filters/internal/authz/header.go", "	if doubt != invert {\n		values = anyValue", "	if doubt == invert {\n		values = anyValue", "filters/internal/authz", ""},
	{"paths with their query", "filters/internal/authz/match.go", "	return PathOnly(p), ok", "	return p, ok", "filters/internal/authz", ""},
	{"what isn't known grants", "filters/internal/authz/engine.go", "doubt := rules.Action != Allow", "doubt := rules.Action == Allow", "filters/internal/authz", ""},
	{"the first policy never refuses", "filters/internal/authz/engine.go", "		d.Allowed = i < 0", "		d.Allowed = i <= 0", "filters/internal/authz", ""},
	{"an expression matches a part", "internal/matcher/regex.go", "regexp.Compile(`^(?s:` + src + `)$`)", "regexp.Compile(`(?s:` + src + `)`)", "internal/matcher", ""},
	{"programs of any size", "internal/matcher/regex.go", "n > MaxRegexProgram {", "n > MaxRegexProgram<<10 {", "internal/matcher", ""},
	{"tokens never expire", "filters/http/jwtauthn/token.go", "	if t.hasExp && n > t.exp+s {", "	if t.hasExp && n > t.exp+s*1e9 {", "filters/http/jwtauthn", ""},
	{"a key for any algorithm", "filters/http/jwtauthn/token.go", ` || k.alg != "" && k.alg != t.algName`, "", "filters/http/jwtauthn", ""},
	{"a policy that fails allows", "filters/http/rego/rego.go", "		return f.cfg.failOpen", "		return true", "filters/http/rego", "TestFailClosed|TestDecisions|TestTheTimeLimit"},
	{"bodies unpack without end", "filters/http/dlp/coding.go", "l.out > l.d.ratio*l.d.counter.n {", "l.out > l.d.ratio<<20*l.d.counter.n {", "filters/http/dlp", ""},
	// identities
	{"names of certificates don't count", "proxy/tlscontext/verify.go", "	if !v.named(leaf, a.Validation) {", "	if !v.named(leaf, a.Validation) && leaf == nil {", "proxy/tlscontext", ""},
	{"expired certificates", "proxy/tlscontext/verify.go", "	case expired && !allow:", "	case expired && allow:", "proxy/tlscontext", ""},
	{"a CA is a workload", "internal/identity/svid.go", "	case c.IsCA || c.KeyUsage&", "	case c.IsCA && c.KeyUsage&", "proxy/tlscontext", "TestPeersAreHeld"},
	// the control plane
	{"a refusal is not told", "xdsclient/state.go", "		a.ErrorDetail = &rpcstatus.Status{", "		_ = &rpcstatus.Status{", "xdsclient", ""},
	{"the last good version is lost", "xdsclient/state.go", "		t.rejected[v.name] = rejected{v.version", "		c.removeLocked(t, v.name, ch)\n		t.rejected[v.name] = rejected{v.version", "xdsclient", ""},
	// upstream
	{"overflows are retried", "proxy/router/retry.go", "	case r.on == 0, reason == transport.Overflow:", "	case r.on == 0:", "proxy/router", ""},
	{"retries without end", "proxy/router/retry.go", "	r.left--\n", "", "proxy/router", ""},
	{"a breaker lets one more pass", "proxy/upstream/breaker.go", "		if n >= l.max {", "		if n > l.max {", "proxy/upstream", ""},
	{"any share of hosts is ejected", "proxy/upstream/outlier.go", "	if share > float64(min(100, d.spec.MaxEjectionPercent)) &&", "	if share > 1000 &&", "proxy/upstream", ""},
	// ztunnel and memory
	{"a peer chooses the address", "ztunnel/rbac.go", "own := a == local.Unmap() ||", "own := a.IsValid() ||", "ztunnel", "TestTheInboundTable|TestAPeer"},
	{"short memory refuses nobody", "internal/overload/overload.go", "	refuseConnections = 0.80", "	refuseConnections = 8.0", "internal/overload", ""},
}
