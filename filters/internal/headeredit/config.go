package headeredit

import (
	"errors"
	"fmt"
	"strings"

	mutation_rulesv3pb "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/matcher"
)

// DecodeMutations converts a list of HeaderMutation.
func DecodeMutations(ms []*mutation_rulesv3pb.HeaderMutation, path string) ([]Edit, error) {
	var out []Edit
	for i, m := range ms {
		var e Edit
		var err error
		switch x := m.GetAction().(type) {
		case *mutation_rulesv3pb.HeaderMutation_Remove:
			e.Action = Remove
			e.Name, err = name(x.Remove)
		case *mutation_rulesv3pb.HeaderMutation_Append:
			e, err = decodeOption(x.Append)
		case *mutation_rulesv3pb.HeaderMutation_RemoveOnMatch_:
			e.Action = RemoveMatching
			e.Match, err = matcher.StringFromProto(x.RemoveOnMatch.GetKeyMatcher())
		default:
			err = fmt.Errorf("action: %T is not supported", x)
		}
		if err != nil {
			return nil, fmt.Errorf("%s[%d].%w", path, i, err)
		}
		out = append(out, e)
	}
	return out, nil
}

// DecodeOptions converts a list of HeaderValueOption.
func DecodeOptions(ms []*corev3pb.HeaderValueOption, path string) ([]Edit, error) {
	var out []Edit
	for i, m := range ms {
		e, err := decodeOption(m)
		if err != nil {
			return nil, fmt.Errorf("%s[%d].%w", path, i, err)
		}
		out = append(out, e)
	}
	return out, nil
}

func decodeOption(m *corev3pb.HeaderValueOption) (Edit, error) {
	e := Edit{KeepEmpty: m.GetKeepEmptyValue()}
	switch m.GetAppendAction() {
	case corev3pb.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD:
		if a := m.GetAppend(); a != nil && !a.GetValue() {
			e.Action = OverwriteOrAdd
		}
	case corev3pb.HeaderValueOption_ADD_IF_ABSENT:
		e.Action = AddIfAbsent
	case corev3pb.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD:
		e.Action = OverwriteOrAdd
	case corev3pb.HeaderValueOption_OVERWRITE_IF_EXISTS:
		e.Action = OverwriteIfExists
	default:
		return e, fmt.Errorf("append_action: %d is not supported", m.GetAppendAction())
	}
	var err error
	if e.Name, err = name(m.GetHeader().GetKey()); err != nil {
		return e, fmt.Errorf("header.key: %w", err)
	}
	src := m.GetHeader().GetValue()
	if len(m.GetHeader().GetRawValue()) > 0 {
		src = string(m.GetHeader().GetRawValue())
	}
	if strings.ContainsAny(src, "\r\n\x00") {
		return e, errors.New("header.value: control characters are not allowed")
	}
	if e.Value, err = format.Compile(src); err != nil {
		return e, fmt.Errorf("header.value: %w", err)
	}
	return e, nil
}

// name checks that a header may be edited.
func name(n string) (string, error) {
	n = strings.ToLower(n)
	if !editable(n) {
		return "", fmt.Errorf("header %q cannot be changed", n)
	}
	for i := range len(n) {
		if c := n[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return "", fmt.Errorf("header %q is not a name", n)
		}
	}
	return n, nil
}
