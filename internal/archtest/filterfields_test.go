package archtest

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	_ "github.com/fairlead-mesh/fairlead/filters/builtin" // links the messages in
)

// wholes are messages that a package decodes as a whole, field by field or to an
// error; their own tests look at them. Others of envoy.type and google.protobuf
// are leaves, too.
var wholes = []protoreflect.FullName{
	"xds.type.matcher.v3.Matcher", "xds.core.v3.TypedExtensionConfig", "google.api.expr.v1alpha1.Expr",
	"envoy.config.core.v3.TypedExtensionConfig", "envoy.config.rbac.v3.RBAC", "envoy.config.core.v3.SubstitutionFormatString",
}

// refused are fields that are refused, reported or left to somebody else as a
// whole: what is within them is not looked at.
var refused = map[string]string{
	"envoy.config.core.v3.GrpcService.google_grpc":                                                "refused",
	"envoy.config.route.v3.RouteMatch.tls_context":                                                "refused by jwt_authn",
	"envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig.dns_cache_config":        "the cluster's counts",
	"envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig.sub_cluster_config":      "refused",
	"envoy.extensions.filters.http.fault.v3.HTTPFault.response_rate_limit":                        "reported",
	"envoy.extensions.filters.http.header_mutation.v3.Mutations.query_parameter_mutations":        "refused",
	"envoy.extensions.filters.http.jwt_authn.v3.JwtRequirement.extract_only_without_validation":   "refused",
	"envoy.extensions.filters.network.mongo_proxy.v3.MongoProxy.delay":                            "refused",
	"envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig.dns_cache_config": "the cluster's counts",
}

// untouched are fields without any effect that a peer or an operator could see, or
// that the named reason keeps from having one. The READMEs say so.
var untouched = map[string]string{
	"envoy.extensions.filters.listener.http_inspector.v3.HttpInspector.initial_read_buffer_size": "a tuning of buffers",
	"envoy.config.core.v3.GrpcService.EnvoyGrpc.skip_envoy_headers":                              "calls carry no such headers",
	"envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector.initial_read_buffer_size":   "a tuning of buffers",
}

// TestEveryFieldOfAFiltersMessageIsNamed: what Envoy's message of a filter has,
// and those within it that are read, is read, or named as reported, by the filter
// or by what it shares with others.
func TestEveryFieldOfAFiltersMessageIsNamed(t *testing.T) {
	const root = "../.."
	shared := sources(t, root+"/filters/internal/*/*.go", root+"/filters/internal/*/*/*.go", root+"/internal/ratelimit/*.go", root+"/internal/matcher/*.go")
	imported := regexp.MustCompile(`(\w+)\s+"github\.com/envoyproxy/go-control-plane/envoy/(extensions/filters/[^"]+)"`)
	configs, _ := filepath.Glob(root + "/filters/*/*/config.go")
	w := fieldWalk{t: t, shared: shared}
	for _, config := range configs {
		w.config, w.own, w.seen = config, sources(t, filepath.Dir(config)+"/*.go"), map[protoreflect.FullName]bool{}
		for _, imp := range imported.FindAllStringSubmatch(sources(t, config), -1) {
			pkg := "envoy." + strings.ReplaceAll(imp[2], "/", ".")
			for _, msg := range regexp.MustCompile(`&`+imp[1]+`\.(\w+)\{\}`).FindAllStringSubmatch(w.own, -1) {
				name := protoreflect.FullName(pkg + "." + strings.ReplaceAll(msg[1], "_", "."))
				d, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
				md, ok := d.(protoreflect.MessageDescriptor)
				if err != nil || !ok {
					t.Errorf("%s: %s is not found", config, name)
					continue
				}
				w.message(md)
			}
		}
	}
	if w.fields < 350 || w.nested < 200 {
		t.Errorf("%d fields, %d of them within others, want 350 and 200 or more: are they found?", w.fields, w.nested)
	}
	t.Logf("%d fields, %d of them within others", w.fields, w.nested)
}

type fieldWalk struct {
	t                   *testing.T
	shared, own, config string
	seen                map[protoreflect.FullName]bool
	depth               int
	fields, nested      int
}

// message looks at the fields of md, and of messages within it that are read.
func (w *fieldWalk) message(md protoreflect.MessageDescriptor) {
	if w.seen[md.FullName()] {
		return
	}
	w.seen[md.FullName()] = true
	for i := range md.Fields().Len() {
		f := md.Fields().Get(i)
		w.fields++
		if w.depth > 0 {
			w.nested++
		}
		read := w.has("Get"+goName(string(f.Name()))+"()") || w.chosen(f)
		if !read && !strings.Contains(w.own, `"`+string(f.Name())+`"`) && !w.shares(f) && !deprecated(f) && untouched[string(f.FullName())] == "" {
			w.t.Errorf("%s: %s is silently accepted", w.config, f.FullName())
		}
		if m := f.Message(); read && m != nil && !leaf(m) && refused[string(f.FullName())] == "" {
			w.depth++
			w.message(m)
			w.depth--
		}
	}
}

// chosen tells whether the choice that f is one of is looked at: what a switch over
// it doesn't know is an error there.
func (w *fieldWalk) chosen(f protoreflect.FieldDescriptor) bool {
	o := f.ContainingOneof()
	return o != nil && !o.IsSynthetic() && (w.has("_"+goName(string(f.Name()))+":") || w.has("Get"+goName(string(o.Name()))+"()"))
}

func (w *fieldWalk) has(text string) bool {
	return strings.Contains(w.own, text) || strings.Contains(w.shared, text)
}

// shares tells whether what filters share names the field as reported.
func (w *fieldWalk) shares(f protoreflect.FieldDescriptor) bool {
	return strings.Contains(w.shared, `"`+string(f.Name())+`"`) || strings.Contains(w.shared, `.`+string(f.Name())+`"`)
}

// leaf tells whether others answer for the fields of m.
func leaf(m protoreflect.MessageDescriptor) bool {
	n := string(m.FullName())
	return m.IsMapEntry() || strings.HasPrefix(n, "google.protobuf.") || strings.HasPrefix(n, "envoy.type.") || slices.Contains(wholes, m.FullName())
}

func deprecated(f protoreflect.FieldDescriptor) bool {
	o, _ := f.Options().(*descriptorpb.FieldOptions)
	return o.GetDeprecated()
}

// sources returns the Go files that patterns match, without tests.
func sources(t *testing.T, patterns ...string) string {
	t.Helper()
	var all strings.Builder
	for _, p := range patterns {
		files, _ := filepath.Glob(p)
		for _, f := range files {
			if strings.HasSuffix(f, "_test.go") || strings.HasSuffix(f, ".pb.go") {
				continue
			}
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			all.Write(b)
		}
	}
	return all.String()
}

// goName is the name of a field in Go, as protoc-gen-go makes it.
func goName(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		lower := c >= 'a' && c <= 'z'
		switch {
		case c == '_' && i+1 < len(s) && s[i+1] >= 'a' && s[i+1] <= 'z':
		case c >= '0' && c <= '9', c == '_':
			b.WriteByte(c)
		default:
			if lower {
				c -= 'a' - 'A'
			}
			b.WriteByte(c)
			for ; i+1 < len(s) && s[i+1] >= 'a' && s[i+1] <= 'z'; i++ {
				b.WriteByte(s[i+1])
			}
		}
	}
	return b.String()
}
