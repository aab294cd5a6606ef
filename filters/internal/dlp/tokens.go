package dlp

// tokenRule is a credential with a fixed beginning: the shape that its issuer
// documents, or that gitleaks knows.
type tokenRule struct {
	typ    string
	prefix string
	class  string // of what follows; a trailing "-" stands for itself
	min    int    // lengths of what follows
	max    int
	suffix string // must end what follows
	// likelihood of a match; 0 is VeryLikely
	likelihood Likelihood
}

var tokenRules = []tokenRule{
	{typ: awsCredentials, prefix: "AKIA", class: "A-Z2-7", min: 16, max: 16},
	{typ: awsCredentials, prefix: "ASIA", class: "A-Z2-7", min: 16, max: 16},
	{typ: awsCredentials, prefix: "ABIA", class: "A-Z2-7", min: 16, max: 16},
	{typ: awsCredentials, prefix: "ACCA", class: "A-Z2-7", min: 16, max: 16},
	{typ: "GCP_API_KEY", prefix: "AIza", class: "A-Za-z0-9_-", min: 35, max: 35},
	{typ: "GCP_CREDENTIALS", prefix: "ya29.", class: "A-Za-z0-9_-", min: 20, max: 2048},
	{typ: "GCP_CREDENTIALS", prefix: "GOCSPX-", class: "A-Za-z0-9_-", min: 28, max: 28},
	{typ: "GCP_CREDENTIALS", prefix: `"private_key_id": "`, class: "a-f0-9", min: 40, max: 40},
	{typ: "GCP_CREDENTIALS", prefix: `"private_key_id":"`, class: "a-f0-9", min: 40, max: 40},
	{typ: "AZURE_AUTH_TOKEN", prefix: "AccountKey=", class: "A-Za-z0-9+/=", min: 88, max: 88, suffix: "=="},
	{typ: "AZURE_AUTH_TOKEN", prefix: "SharedAccessKey=", class: "A-Za-z0-9+/=", min: 44, max: 44, suffix: "="},
	{typ: "SLACK_TOKEN", prefix: "xoxb-", class: "A-Za-z0-9-", min: 20, max: 200},
	{typ: "SLACK_TOKEN", prefix: "xoxp-", class: "A-Za-z0-9-", min: 20, max: 200},
	{typ: "SLACK_TOKEN", prefix: "xoxa-", class: "A-Za-z0-9-", min: 20, max: 200},
	{typ: "SLACK_TOKEN", prefix: "xoxr-", class: "A-Za-z0-9-", min: 20, max: 200},
	{typ: "SLACK_TOKEN", prefix: "xoxs-", class: "A-Za-z0-9-", min: 20, max: 200},
	{typ: "SLACK_TOKEN", prefix: "xoxe-", class: "A-Za-z0-9-", min: 20, max: 250},
	{typ: "SLACK_TOKEN", prefix: "xapp-", class: "A-Za-z0-9-", min: 40, max: 200},
	{typ: "SLACK_TOKEN", prefix: "hooks.slack.com/services/", class: "A-Za-z0-9/", min: 40, max: 60},
	{typ: "STRIPE_API_KEY", prefix: "sk_live_", class: "A-Za-z0-9", min: 16, max: 247},
	{typ: "STRIPE_API_KEY", prefix: "rk_live_", class: "A-Za-z0-9", min: 16, max: 247},
	{typ: "STRIPE_API_KEY", prefix: "sk_test_", class: "A-Za-z0-9", min: 16, max: 247, likelihood: Likely},
	{typ: "STRIPE_API_KEY", prefix: "rk_test_", class: "A-Za-z0-9", min: 16, max: 247, likelihood: Likely},
	{typ: "STRIPE_API_KEY", prefix: "whsec_", class: "A-Za-z0-9+/=", min: 32, max: 64},
	{typ: "GITLAB_TOKEN", prefix: "glpat-", class: "A-Za-z0-9_-", min: 20, max: 64},
	{typ: "NPM_TOKEN", prefix: "npm_", class: "A-Za-z0-9", min: 36, max: 36},
	{typ: "PYPI_TOKEN", prefix: "pypi-AgEIcHlwaS5vcmc", class: "A-Za-z0-9_-", min: 50, max: 1000},
	{typ: "SENDGRID_API_KEY", prefix: "SG.", class: "A-Za-z0-9_.-", min: 66, max: 66},
	{typ: "SHOPIFY_TOKEN", prefix: "shpat_", class: "a-fA-F0-9", min: 32, max: 32},
	{typ: "SHOPIFY_TOKEN", prefix: "shpss_", class: "a-fA-F0-9", min: 32, max: 32},
	{typ: "DIGITALOCEAN_TOKEN", prefix: "dop_v1_", class: "a-f0-9", min: 64, max: 64},
	{typ: "HUGGINGFACE_TOKEN", prefix: "hf_", class: "A-Za-z0-9", min: 34, max: 40},
	{typ: "DATABRICKS_TOKEN", prefix: "dapi", class: "a-f0-9", min: 32, max: 32},
	{typ: "VAULT_TOKEN", prefix: "hvs.", class: "A-Za-z0-9_-", min: 24, max: 200},
	{typ: "DOCKER_TOKEN", prefix: "dckr_pat_", class: "A-Za-z0-9_-", min: 27, max: 27},
	{typ: "ANTHROPIC_API_KEY", prefix: "sk-ant-", class: "A-Za-z0-9_-", min: 80, max: 120},
	{typ: "OPENAI_API_KEY", prefix: "sk-proj-", class: "A-Za-z0-9_-", min: 40, max: 200},
	{typ: "OPENAI_API_KEY", prefix: "sk-svcacct-", class: "A-Za-z0-9_-", min: 40, max: 200},
	{typ: "GRAFANA_TOKEN", prefix: "glsa_", class: "A-Za-z0-9_", min: 41, max: 41},
	{typ: "NEWRELIC_API_KEY", prefix: "NRAK-", class: "A-Z0-9", min: 27, max: 27},
	{typ: "AGE_SECRET_KEY", prefix: "AGE-SECRET-KEY-1", class: "A-Z0-9", min: 58, max: 58},
}

// tokenRec recognizes the tokens of one type.
type tokenRec struct {
	typ   int
	rules []tokenRule
	class []set
}

func newTokens(types map[string]int) []recognizer {
	byType := map[int]*tokenRec{}
	var out []recognizer
	for _, t := range tokenRules {
		typ, ok := types[t.typ]
		if !ok {
			continue
		}
		r := byType[typ]
		if r == nil {
			r = &tokenRec{typ: typ}
			byType[typ] = r
			out = append(out, r)
		}
		r.rules = append(r.rules, t)
		r.class = append(r.class, tokenClass(t.class))
	}
	if typ, ok := types["AZURE_AUTH_TOKEN"]; ok {
		out = append(out, &azureRec{typ})
	}
	if typ, ok := types[awsCredentials]; ok {
		out = append(out, &awsSecretRec{typ})
	}
	return out
}

func tokenClass(desc string) set {
	dash := desc[len(desc)-1] == '-'
	if dash {
		desc = desc[:len(desc)-1]
	}
	s := classOf(desc)
	if dash {
		s.add('-')
	}
	return s
}

func (r *tokenRec) patterns() [][]set {
	out := make([][]set, len(r.rules))
	for i := range r.rules {
		out[i] = exactly(r.rules[i].prefix)
	}
	return out
}

func (r *tokenRec) recognize(v *view, at, id int, emit *emitter) {
	t := &r.rules[id]
	if isWord(t.prefix[0]) && isAlnum(v.at(at-1)) {
		return
	}
	start := at + len(t.prefix)
	end := v.span(start, t.max+1, &r.class[id])
	if n := end - start; n < t.min || n > t.max || isWord(v.at(end)) {
		return
	}
	for i := range len(t.suffix) {
		if v.buf[end-len(t.suffix)+i] != t.suffix[i] {
			return
		}
	}
	if entropy(v.buf[start:end]) < 2 { // AKIAXXXXXXXXXXXXXXXX
		return
	}
	l := t.likelihood
	if l == 0 {
		l = VeryLikely
	}
	if t.prefix[0] == '"' || t.suffix != "" { // a name, not part of the secret
		at = start
	}
	emit.add(r.typ, at, end, l)
}

// azureRec finds client secrets of Entra ID: three characters, a digit, "Q~"
// and 31 to 34 more.
type azureRec struct{ typ int }

var azureClass = tokenClass("A-Za-z0-9_.~-")

func (r *azureRec) patterns() [][]set {
	return [][]set{{azureClass, azureClass, azureClass, classOf("0-9"), classOf("Q"), classOf("~")}}
}

func (r *azureRec) recognize(v *view, at, _ int, emit *emitter) {
	if azureClass.has(v.at(at - 1)) {
		return
	}
	start := at + 6
	end := v.span(start, 35, &azureClass)
	if n := end - start; n >= 31 && n <= 34 {
		emit.add(r.typ, at, end, VeryLikely)
	}
}

// tokenTypes returns the names in tokenRules.
func tokenTypes() []string {
	var out []string
	for _, t := range tokenRules {
		out = append(out, t.typ)
	}
	return out
}

// one makes the recognizers of a single detector.
func one(name string, f func(typ int) recognizer) group {
	return group{[]string{name}, func(types map[string]int) []recognizer { return []recognizer{f(types[name])} }}
}

// groups lists the built-in detectors.
func groups() []group {
	return []group{
		{numberTypes, newNumbers},
		{tokenTypes(), newTokens},
		one(emailAddress, func(t int) recognizer { return &emailRec{t} }),
		one(ipAddress, func(t int) recognizer { return &ipRec{t} }),
		one(macAddress, func(t int) recognizer { return &macRec{t} }),
		one(ibanCode, func(t int) recognizer { return &ibanRec{t} }),
		one(privateKey, func(t int) recognizer { return &pemRec{t} }),
		one(jsonWebToken, func(t int) recognizer { return &jwtRec{t} }),
		one(basicAuth, func(t int) recognizer { return &basicRec{t} }),
		one(githubToken, func(t int) recognizer { return &githubRec{t} }),
		one(genericSecret, func(t int) recognizer { return &genericRec{t} }),
	}
}
