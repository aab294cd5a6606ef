package dlp

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/http/dlp/dlppb"
	"github.com/fairlead-mesh/fairlead/filters/internal/dlp"
	"github.com/fairlead-mesh/fairlead/internal/matcher"
)

// The type URLs of the filter's configuration and of its per-route form.
const (
	TypeURL         = "type.googleapis.com/fairlead.dlp.v1.Config"
	PerRouteTypeURL = "type.googleapis.com/fairlead.dlp.v1.PerRoute"
)

const (
	defaultWindow = 64 << 10
	minWindow     = 64 << 10
	maxWindow     = 1 << 20
	defaultRatio  = 100
	maxRules      = 200
	minKey        = 16 // bytes
)

// config is a validated Config.
type config struct {
	name            string
	rules           []rule
	window          int
	deny            uninspectable
	ratio           int
	allow           allowList
	exclude         []string
	dryRun          bool
	hashKey         string
	hashKeyFile     string
	request, answer *ruleSet // nil if no rule looks there
}

type uninspectable uint8

const (
	denyAuto uninspectable = iota
	denyAlways
	denyNever
)

// rule is a validated Rule.
type rule struct {
	name              string
	types             []string
	regexes           []dlp.Regex
	words             []dlp.Words
	request, response bool
	places            [places]bool
	min               dlp.Likelihood
	count             int
	action            action
	edit              dlp.Edit // with Tag as a template
	status            int
	header, value     string
	allow             allowList
}

// override is a validated PerRoute.
type override struct {
	disabled bool
	config   *config
	without  []string
}

func unmarshal(a filters.Any, m proto.Message) error {
	name := m.ProtoReflect().Descriptor().FullName()
	if a.JSON {
		if err := protojson.Unmarshal(a.Value, m); err != nil {
			return fmt.Errorf("%s as JSON: %w", name, err)
		}
		return nil
	}
	if err := proto.Unmarshal(a.Value, m); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if len(m.ProtoReflect().GetUnknown()) > 0 {
		return fmt.Errorf("%s: unknown fields: written for a newer version?", name)
	}
	return nil
}

// Decode validates a Config and compiles its detectors.
func (Factory) Decode(a filters.Any, _ *filters.Decoding) (filters.Config, error) {
	if a.TypeURL != TypeURL {
		return nil, fmt.Errorf("dlp: type %q: want %q", a.TypeURL, TypeURL)
	}
	var m dlppb.Config
	if err := unmarshal(a, &m); err != nil {
		return nil, err
	}
	return decodeConfig(&m)
}

// DecodeOverride validates a PerRoute.
func (Factory) DecodeOverride(a filters.Any, _ *filters.Decoding) (filters.Config, error) {
	if a.TypeURL != PerRouteTypeURL {
		return nil, fmt.Errorf("dlp: per-route type %q: want %q", a.TypeURL, PerRouteTypeURL)
	}
	var m dlppb.PerRoute
	if err := unmarshal(a, &m); err != nil {
		return nil, err
	}
	o := &override{disabled: m.GetDisabled(), without: m.GetDisabledRules()}
	if m.GetConfig() != nil {
		var err error
		if o.config, err = decodeConfig(m.GetConfig()); err != nil {
			return nil, fmt.Errorf("config.%w", err)
		}
	}
	return o, nil
}

func decodeConfig(m *dlppb.Config) (*config, error) {
	c := &config{
		name: m.GetName(), window: defaultWindow, ratio: defaultRatio, dryRun: m.GetDryRun(),
		hashKey: m.GetHashKey(), hashKeyFile: m.GetHashKeyFile(),
	}
	if n := len(m.GetRules()); n == 0 || n > maxRules {
		return nil, fmt.Errorf("rules: %d: want 1 to %d", n, maxRules)
	}
	for i, r := range m.GetRules() {
		rl, err := decodeRule(r)
		if err != nil {
			return nil, fmt.Errorf("rules[%d].%w", i, err)
		}
		if slices.ContainsFunc(c.rules, func(o rule) bool { return o.name == rl.name }) {
			return nil, fmt.Errorf("rules[%d].name: %q is used twice", i, rl.name)
		}
		c.rules = append(c.rules, rl)
	}
	if err := checkCustomTypes(c.rules); err != nil {
		return nil, err
	}
	if w := int(m.GetWindowBytes()); w != 0 {
		if w < minWindow || w > maxWindow {
			return nil, fmt.Errorf("window_bytes: %d is outside %d to %d", w, minWindow, maxWindow)
		}
		c.window = w
	}
	switch m.GetOnUninspectable() {
	case dlppb.Config_AUTO:
	case dlppb.Config_DENY:
		c.deny = denyAlways
	case dlppb.Config_PASS:
		c.deny = denyNever
	default:
		return nil, fmt.Errorf("on_uninspectable: unknown value %d", m.GetOnUninspectable())
	}
	if r := int(m.GetMaxDecompressionRatio()); r != 0 {
		if r < 2 || r > 10000 {
			return nil, fmt.Errorf("max_decompression_ratio: %d is outside 2 to 10000", r)
		}
		c.ratio = r
	}
	if c.hashKey != "" && c.hashKeyFile != "" {
		return nil, errors.New("hash_key and hash_key_file: only one may be set")
	}
	for i := range c.rules {
		if c.rules[i].action == tokenize && c.hashKeyFile == "" && len(c.hashKey) < minKey {
			return nil, fmt.Errorf("rules[%d] (%s): TOKENIZE needs hash_key or hash_key_file of at least %d bytes, the same on all replicas", i, c.rules[i].name, minKey)
		}
	}
	c.exclude = []string{"authorization", "proxy-authorization"}
	if len(m.GetExcludeHeaders()) > 0 || m.GetInspectAllHeaders() {
		c.exclude = nil
	}
	for _, h := range m.GetExcludeHeaders() {
		c.exclude = append(c.exclude, strings.ToLower(h))
	}
	c.allow = newAllowList(m.GetAllowValues())
	for i, p := range m.GetAllowPatterns() {
		re, err := matcher.CompileSafeRegex(p)
		if err != nil {
			return nil, fmt.Errorf("allow_patterns[%d]: %w", i, err)
		}
		c.allow.patterns = append(c.allow.patterns, re.Match)
	}
	return c, c.compile()
}

// checkCustomTypes rejects a name that means two things.
func checkCustomTypes(rules []rule) error {
	builtin := dlp.Builtin()
	owner := map[string]string{}
	for i := range rules {
		var names []string
		for _, r := range rules[i].regexes {
			names = append(names, r.Type)
		}
		for _, w := range rules[i].words {
			names = append(names, w.Type)
		}
		for _, n := range names {
			if _, taken := slices.BinarySearch(builtin, n); taken {
				return fmt.Errorf("rules[%d] (%s): info_type %q is built in", i, rules[i].name, n)
			}
			if o, taken := owner[n]; taken && o != rules[i].name {
				return fmt.Errorf("rules[%d] (%s): info_type %q belongs to rule %s", i, rules[i].name, n, o)
			}
			owner[n] = rules[i].name
		}
	}
	return nil
}

func decodeRule(m *dlppb.Rule) (rule, error) {
	r := rule{
		name: m.GetName(), types: expandTypes(m.GetInfoTypes()), min: dlp.Possible, count: max(1, int(m.GetMinCount())), status: 403,
		allow: newAllowList(m.GetAllowValues()),
	}
	if r.name == "" {
		return r, errors.New("name: required")
	}
	if len(r.types)+len(m.GetRegexes())+len(m.GetWords()) == 0 {
		return r, errors.New("info_types, regexes or words: at least one required")
	}
	switch m.GetDirection() {
	case dlppb.Rule_BOTH:
		r.request, r.response = true, true
	case dlppb.Rule_REQUEST:
		r.request = true
	case dlppb.Rule_RESPONSE:
		r.response = true
	default:
		return r, fmt.Errorf("direction: unknown value %d", m.GetDirection())
	}
	if err := decodePlaces(m, &r); err != nil {
		return r, err
	}
	var err error
	if r.min, err = likelihood("min_likelihood", m.GetMinLikelihood(), dlp.Possible); err != nil {
		return r, err
	}
	for i, x := range m.GetRegexes() {
		l, err := likelihood(fmt.Sprintf("regexes[%d].likelihood", i), x.GetLikelihood(), dlp.Likely)
		if err != nil {
			return r, err
		}
		re := dlp.Regex{Type: x.GetInfoType(), Pattern: x.GetPattern(), MaxLength: int(x.GetMaxLength()), Likelihood: l}
		for _, w := range x.GetContextWords() {
			re.Context = append(re.Context, strings.ToLower(w))
		}
		r.regexes = append(r.regexes, re)
	}
	for i, x := range m.GetWords() {
		l, err := likelihood(fmt.Sprintf("words[%d].likelihood", i), x.GetLikelihood(), dlp.Likely)
		if err != nil {
			return r, err
		}
		r.words = append(r.words, dlp.Words{Type: x.GetInfoType(), List: x.GetWords(), Likelihood: l})
	}
	return r, decodeAction(m, &r)
}

// expandTypes puts the detectors of a family in the place of its name.
func expandTypes(names []string) []string {
	var out []string
	for _, n := range names {
		switch n {
		case "ALL_SECRETS":
			out = append(out, dlp.SecretTypes()...)
		case "ALL_PERSONAL_DATA":
			out = append(out, dlp.PersonalTypes()...)
		default:
			out = append(out, n)
		}
	}
	return out
}

func decodePlaces(m *dlppb.Rule, r *rule) error {
	for i, p := range m.GetPlaces() {
		switch p {
		case dlppb.Rule_PATH:
			r.places[inPath] = true
		case dlppb.Rule_QUERY:
			r.places[inQuery] = true
		case dlppb.Rule_HEADERS:
			r.places[inHeader] = true
		case dlppb.Rule_BODY:
			r.places[inBody] = true
		case dlppb.Rule_TRAILERS:
			r.places[inTrailer] = true
		default:
			return fmt.Errorf("places[%d]: unknown value %d", i, p)
		}
	}
	if len(m.GetPlaces()) == 0 {
		r.places = [places]bool{true, true, true, true, true}
	}
	return nil
}

func decodeAction(m *dlppb.Rule, r *rule) error {
	var ok bool
	if r.action, ok = actions[m.GetAction()]; !ok {
		return fmt.Errorf("action: unknown value %d", m.GetAction())
	}
	k := m.GetMask()
	r.edit = dlp.Edit{Action: r.action.edit(), KeepLast: int(min(k.GetKeepLast(), 64)), All: k.GetPunctuation(), Tag: m.GetReplacement()}
	switch {
	case r.edit.Tag == "" && r.action == tokenize:
		r.edit.Tag = "[{TYPE}:{TOKEN}]"
	case r.edit.Tag == "":
		r.edit.Tag = "[{TYPE}]"
	case r.action == tokenize && !strings.Contains(r.edit.Tag, "{TOKEN}"):
		return fmt.Errorf("replacement: %q has no {TOKEN}", r.edit.Tag)
	}
	if strings.ContainsAny(r.edit.Tag, "\r\n\x00\"\\") || len(r.edit.Tag) > 256 {
		return fmt.Errorf("replacement: %q is longer than 256 bytes or holds quotes, backslashes or line breaks", r.edit.Tag)
	}
	if c := k.GetCharacter(); c != "" {
		if len(c) != 1 || c[0] <= ' ' || c[0] > '~' || c[0] == '"' || c[0] == '\\' {
			return fmt.Errorf("mask.character: %q is not one printable ASCII character other than quote and backslash", c)
		}
		r.edit.With = c[0]
	}
	if s := m.GetBlockStatus(); s != 0 {
		if s < 400 || s > 599 {
			return fmt.Errorf("block_status: %d is not an error status (400 to 599)", s)
		}
		r.status = int(s)
	}
	if h := m.GetAddHeader(); h != nil {
		r.header, r.value = strings.ToLower(h.GetName()), h.GetValue()
		if !headerName(r.header) || strings.ContainsAny(r.value, "\r\n\x00") {
			return fmt.Errorf("add_header: %q: %q is not a header", h.GetName(), h.GetValue())
		}
	}
	if r.action == route && (r.header == "" || r.response) {
		return errors.New("action: ROUTE needs add_header, by which the other route is chosen, and direction: REQUEST")
	}
	return nil
}

var actions = map[dlppb.Rule_Action]action{
	dlppb.Rule_REPORT: report, dlppb.Rule_MASK: mask, dlppb.Rule_REPLACE: replace, dlppb.Rule_BLOCK: block,
	dlppb.Rule_TOKENIZE: tokenize, dlppb.Rule_ROUTE: route,
}

func headerName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if ('a' > c || c > 'z') && ('0' > c || c > '9') && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	switch s {
	case "", "host", "content-length", "transfer-encoding", "connection", "upgrade", "te":
		return false
	}
	return true
}

func likelihood(field string, l dlppb.Rule_Likelihood, def dlp.Likelihood) (dlp.Likelihood, error) {
	if l == dlppb.Rule_LIKELIHOOD_UNSPECIFIED {
		return def, nil
	}
	if _, ok := dlppb.Rule_Likelihood_name[int32(l)]; !ok {
		return 0, fmt.Errorf("%s: unknown value %d", field, l)
	}
	return dlp.Likelihood(l), nil
}

// with returns c with o applied.
func (c *config) with(o *override) (*config, error) {
	if o.config != nil {
		c = o.config
	}
	if len(o.without) == 0 {
		return c, nil
	}
	n := *c
	n.rules = slices.DeleteFunc(slices.Clone(c.rules), func(r rule) bool { return slices.Contains(o.without, r.name) })
	return &n, n.compile()
}

// key returns the key of the hash in reports.
func (c *config) key() ([]byte, error) {
	switch {
	case c.hashKeyFile != "":
		b, err := os.ReadFile(c.hashKeyFile)
		if err != nil {
			return nil, fmt.Errorf("hash_key_file: %w", err)
		}
		if b = []byte(strings.TrimSpace(string(b))); len(b) < minKey {
			return nil, fmt.Errorf("hash_key_file: %s holds %d bytes: want at least %d", c.hashKeyFile, len(b), minKey)
		}
		return b, nil
	case c.hashKey != "":
		return []byte(c.hashKey), nil
	}
	return processKey(), nil
}
