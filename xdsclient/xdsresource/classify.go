package xdsresource

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/fairlead-mesh/fairlead/filters"
)

// class is what happens to a field that is set.
type class uint8

const (
	// unclassified fields are newer than this table.
	unclassified class = iota
	// supported fields are executed.
	supported
	// moot fields have nothing to act on here; behaviour is as if they were
	// executed.
	moot
	// ignored fields are accepted and reported.
	ignored
	// closed fields make the part that holds them fail closed.
	closed
	// rejected fields reject the resource.
	rejected
)

// notes maps fields to reasons. A field written "name?" is only reported if it
// isn't its type's zero (a BoolValue that is false counts as zero).
type notes map[string]string

// message classifies the fields of one message.
type message struct {
	name protoreflect.FullName
	// strict messages take part in a security decision or in matching: fields
	// that are unknown make the part that holds them fail closed.
	strict bool
	// root messages are classified where they are decoded, not where they are
	// embedded.
	root      bool
	supported string
	moot      notes
	ignored   notes
	closed    notes
	rejected  notes
}

// whole messages are decoded by package matcher, ratelimit or accesslog, which
// turn every field into behaviour or into an error.
var whole = []protoreflect.FullName{
	"xds.type.matcher.v3.Matcher",
	"envoy.config.accesslog.v3.AccessLogFilter",
	"envoy.config.core.v3.CidrRange",
	"envoy.config.route.v3.CookieMatcher",
	"envoy.config.route.v3.HeaderMatcher",
	"envoy.config.route.v3.QueryParameterMatcher",
	"envoy.config.route.v3.RateLimit",
	"envoy.type.matcher.v3.FilterStateMatcher",
	"envoy.type.matcher.v3.MetadataMatcher",
	"envoy.type.matcher.v3.RegexMatchAndSubstitute",
	"envoy.type.matcher.v3.RegexMatcher",
	"envoy.type.matcher.v3.StringMatcher",
	"envoy.type.metadata.v3.MetadataKey",
	"envoy.type.metadata.v3.MetadataKind",
	"envoy.type.tracing.v3.CustomTag",
	"opentelemetry.proto.common.v1.AnyValue",
	"opentelemetry.proto.common.v1.KeyValueList",
}

const reasonNew = "not known to this version"

// tables returns all classified messages, in the order of the documentation.
func tables() []message {
	var out []message
	for _, t := range [][]message{listenerTable, httpTable, routeTable, clusterTable, endpointTable, tlsTable, coreTable, bootstrapTable} {
		out = append(out, t...)
	}
	return out
}

type fieldSupport struct {
	fd      protoreflect.FieldDescriptor
	class   class
	reason  string
	nonzero bool // only if not zero
	descend *compiledMessage
}

type compiledMessage struct {
	message
	fields []fieldSupport
}

// compiled indexes the tables by message. Fields of messages that are not in a
// table are leaves.
var compiled = sync.OnceValue(func() map[protoreflect.FullName]*compiledMessage {
	out := map[protoreflect.FullName]*compiledMessage{}
	for _, m := range tables() {
		out[m.name] = &compiledMessage{message: m}
	}
	return out
})

// bind resolves the fields of m by its descriptor.
func (m *compiledMessage) bind(md protoreflect.MessageDescriptor, all map[protoreflect.FullName]*compiledMessage) {
	byName := map[string]fieldSupport{}
	for f := range strings.FieldsSeq(m.supported) {
		byName[f] = fieldSupport{class: supported}
	}
	for cl, ns := range map[class]notes{moot: m.moot, ignored: m.ignored, closed: m.closed, rejected: m.rejected} {
		for f, reason := range ns {
			name, nonzero := strings.CutSuffix(f, "?")
			byName[name] = fieldSupport{class: cl, reason: reason, nonzero: nonzero}
		}
	}
	m.fields = make([]fieldSupport, 0, md.Fields().Len())
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		f := byName[string(fd.Name())]
		f.fd = fd
		if sub := fd.Message(); sub != nil && !fd.IsMap() {
			if t := all[sub.FullName()]; t != nil && !t.root {
				f.descend = t
			}
		}
		m.fields = append(m.fields, f)
	}
}

var bindMu sync.Mutex

// bound returns the table of md with its fields resolved, nil for a leaf.
func bound(md protoreflect.MessageDescriptor) *compiledMessage {
	all := compiled()
	m := all[md.FullName()]
	if m == nil {
		return nil
	}
	bindMu.Lock()
	defer bindMu.Unlock()
	if m.fields == nil {
		m.bind(md, all)
	}
	return m
}

// classify acts on the fields of m, and of the messages in it up to the next
// root, that are not supported.
func (s *scope) classify(m proto.Message) {
	r := m.ProtoReflect()
	if t := bound(r.Descriptor()); t != nil {
		s.walk(r, t)
	}
}

// Classify reports what a message that is decoded elsewhere (a bootstrap) sets
// without effect. The error lists fields that are rejected.
func Classify(m proto.Message) ([]filters.Ignored, error) {
	s := &scope{}
	s.validate(m)
	s.classify(m)
	for _, c := range s.closed {
		s.errs = append(s.errs, errors.New(c))
	}
	return s.ignored.Ignored(), errors.Join(s.errs...)
}

func (s *scope) walk(r protoreflect.Message, t *compiledMessage) {
	if u := r.GetUnknown(); len(u) > 0 {
		num, _, _ := protowire.ConsumeTag(u)
		s.unknownField(t, fmt.Sprintf("(field %d)", num))
	}
	for i := range t.fields {
		f := &t.fields[i]
		if !r.Has(f.fd) || f.class == supported && f.descend == nil || f.class == moot {
			continue
		}
		name := string(f.fd.Name())
		v := r.Get(f.fd)
		if f.nonzero && isZero(f.fd, v) {
			continue
		}
		switch f.class {
		case supported:
			s.walkField(f, name, v)
		case ignored:
			s.ignore(name, f.reason)
		case closed:
			s.unsupported(name, "%s", f.reason)
		case rejected:
			s.errorf(name, "%s", f.reason)
		case unclassified:
			s.unknownField(t, name)
		case moot:
		}
	}
}

func (s *scope) walkField(f *fieldSupport, name string, v protoreflect.Value) {
	t := bound(f.fd.Message())
	if !f.fd.IsList() {
		s.push(name)
		s.walk(v.Message(), t)
		s.pop()
		return
	}
	for i := range v.List().Len() {
		s.pushIndex(name, i)
		s.walk(v.List().Get(i).Message(), t)
		s.pop()
	}
}

func (s *scope) unknownField(t *compiledMessage, name string) {
	if t.strict {
		s.unsupported(name, reasonNew)
		return
	}
	s.ignore(name, reasonNew)
}

// isZero reports whether v says what leaving it out says, too.
func isZero(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
	if fd.IsList() || fd.IsMap() || fd.Message() == nil {
		return false // such a field is only set if it is not zero
	}
	if fd.Message().ParentFile().Package() != "google.protobuf" {
		return false
	}
	value := fd.Message().Fields().ByName("value")
	return value != nil && fd.Message().FullName() != "google.protobuf.Any" && !v.Message().Has(value)
}
