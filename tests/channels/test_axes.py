"""Axes: what splitting, cutting and unifying does to their channels."""

from step_cli.channels.axes import (
    ONE,
    Axis,
    cut,
    find,
    fix,
    leaf,
    leaves,
    product,
    reshaped,
    row,
    unify,
)


def sizes(axis: Axis) -> list[int]:
    return [found.size for found in leaves(axis)]


def fixed(axis: Axis) -> bool:
    return all(found.fixed for found in leaves(axis))


def test_two_axes_walked_along_together_become_one() -> None:
    one, other, third = leaf(8), leaf(8), leaf(8)
    unify(one, other)
    unify(third, other)
    assert find(one) is find(other) is find(third)
    fix(third, "it leaves")
    assert fixed(one)


def test_a_fixed_axis_fixes_what_it_meets() -> None:
    one, other = leaf(8), leaf(8, "it enters")
    unify(one, other)
    assert find(one).fixed == "it enters"
    parts = product([leaf(2), leaf(4)])
    unify(leaf(8, "it enters"), parts)
    assert fixed(parts)


def test_other_sizes_do_not_match() -> None:
    one, other = leaf(8), leaf(4)
    unify(one, other)
    assert fixed(one) and fixed(other)


def test_a_reshape_splits_a_leaf_and_the_way_back_joins_it() -> None:
    width = leaf(12)
    made = reshaped([leaf(5), width], [5, 3, 4])
    assert made is not None
    assert [sizes(axis) for axis in made] == [[5], [3], [4]]
    assert sizes(width) == [3, 4]
    back = reshaped(made, [5, 12])
    assert back is not None
    other = leaf(12)
    unify(other, back[1])
    assert list(leaves(other)) == list(leaves(width))


def test_a_reshape_across_channels_is_not_understood() -> None:
    assert reshaped([leaf(6), leaf(4)], [4, 6]) is None
    assert reshaped([leaf(0), leaf(4)], [0, 2, 2]) is None
    assert reshaped([leaf(4)], [1, 4, 1]) is not None


def test_products_of_other_factors_are_refined() -> None:
    one, other = product([leaf(2), leaf(6)]), product([leaf(4), leaf(3)])
    unify(one, other)
    assert sizes(one) == sizes(other) == [2, 2, 3]
    assert not fixed(one)
    one, other = product([leaf(2), leaf(6)]), product([leaf(3), leaf(4)])
    unify(one, other)
    assert fixed(one) and fixed(other)


def test_a_slice_cuts_a_row() -> None:
    width = leaf(12)
    queries, values = cut(width, 0, 4), cut(width, 8, 12)
    assert queries is not None and values is not None
    assert sizes(width) == [4, 4, 4]
    heads = reshaped([values], [2, 2])
    assert heads is not None
    assert cut(width, 8, 10) is None  # through the heads
    whole = cut(width, 0, 12)
    assert whole is not None
    assert list(leaves(whole)) == list(leaves(width))


def test_rows_match_piece_by_piece() -> None:
    one, other = row([leaf(4), leaf(8)]), leaf(12)
    unify(other, one)
    assert sizes(other) == [4, 8]
    third = row([leaf(8), leaf(4)])
    unify(third, one)
    assert sizes(one) == sizes(third) == [4, 4, 4]
    unify(one, product([leaf(3), leaf(4)]))
    assert fixed(one)


def test_an_axis_of_one_channel_has_no_leaf() -> None:
    assert leaf(1) is ONE
    assert sizes(product([ONE, leaf(4), ONE])) == [4]
    unify(ONE, leaf(1))
